// Reads requests as Node.js does, and upgrades as the npm package `ws` does, whose folder is the argument.
//
// In go lines of a client's bytes and of what a backend gets of them, in hexadecimal; out comes a line of
// what is wrong, for each where something is, and at the end how many were read.

'use strict';

const http = require('node:http');
const readline = require('node:readline');
const { Duplex } = require('node:stream');
const { createHash } = require('node:crypto');
const { WebSocketServer } = require(process.argv[2]);

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

/** A connection that has come with all its bytes. */
class Arrived extends Duplex {
  written = '';

  constructor(bytes) {
    super();
    this.push(bytes);
    this.push(null);
  }

  _read() {}

  _write(chunk, _encoding, done) {
    this.written += chunk.toString('latin1');
    done();
  }

  setTimeout() {}
  setNoDelay() {}
  setKeepAlive() {}
}

/** What comes first of a connection: an upgrade, an ordinary request, or nothing that can be read. */
function read(bytes) {
  return new Promise((resolve) => {
    const server = http.createServer(() => resolve({ is: 'request' }));
    const sockets = new WebSocketServer({ noServer: true });
    const socket = new Arrived(bytes);
    server.on('clientError', (error) => resolve({ is: 'error', why: error.code }));
    server.on('upgrade', (request, _socket, behind) => {
      sockets.handleUpgrade(request, socket, behind, (opened) => {
        // What follows is no frame, mostly.
        opened.on('error', () => {});
        opened.terminate();
      });
      resolve({ is: 'upgrade', request, behind: behind.length, answer: socket.written });
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve({ is: 'nothing' }));
    server.emit('connection', socket);
  });
}

/** The head that was read, as it is written. */
function written({ method, url, httpVersion, rawHeaders }) {
  let head = `${method} ${url} HTTP/${httpVersion}\r\n`;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const value = rawHeaders[i + 1];
    head += `${rawHeaders[i]}:${value && ' '}${value}\r\n`;
  }
  return `${head}\r\n`;
}

/** A backend's reading is ours, byte for byte; none: it is. */
async function problem(input, sent) {
  const backend = await read(sent);
  if (backend.is !== 'upgrade') return `a backend reads ${backend.is} ${backend.why ?? ''}`;
  if (backend.behind > 0) return `a backend reads ${backend.behind} bytes behind the head`;
  if (written(backend.request) !== sent.toString('latin1')) return `a backend reads ${written(backend.request)}`;
  const key = backend.request.headers['sec-websocket-key'];
  const accept = createHash('sha1').update(key + GUID).digest('base64');
  const isAccepted = backend.answer.startsWith('HTTP/1.1 101') && backend.answer.includes(`Sec-WebSocket-Accept: ${accept}\r\n`);
  // It is stricter about lists of subprotocols and parameters of extensions.
  if (!isAccepted && !backend.answer.startsWith('HTTP/1.1 400')) return `a backend answers ${backend.answer}`;
  // What a client sent may be refused by others, but not read as another upgrade.
  const client = await read(input);
  if (client.is === 'request') return 'a client sent an ordinary request';
  if (client.is === 'upgrade' && client.request.headers['sec-websocket-key'] !== key) return 'a client sent another key';
  return null;
}

async function main() {
  let read = 0;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [input, sent] = line.split(' ').map((hex) => Buffer.from(hex, 'hex'));
    const found = await problem(input, sent);
    if (found) console.log(JSON.stringify({ found, input: input.toString('latin1'), sent: sent.toString('latin1') }));
    read += 1;
  }
  console.log(`${read} read`);
}

main();
