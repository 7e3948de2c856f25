// Opens connections one after the other, keeps them all open, and has each one echo a text and a
// binary message. Prints where each landed; exits 1 if an echo differs or a connection fails.
//
//   node client.js [URL] [CONNECTIONS]      ws://127.0.0.1:8080/websocket and 9 without

import { randomBytes } from 'node:crypto'
import WebSocket from 'ws'

const url = process.argv[2] ?? 'ws://127.0.0.1:8080/websocket'
const connections = Number(process.argv[3] ?? 9)
const PATIENCE_MS = 5000

/** Resolves to what `start` hands to its callback; rejects on an error, a close, or PATIENCE_MS. */
function answer (socket, what, start) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => done(new Error(`no ${what} within ${PATIENCE_MS} ms`)), PATIENCE_MS)
    const closed = (code) => done(new Error(`closed with ${code} while waiting for ${what}`))
    function done (error, value) {
      clearTimeout(late)
      socket.off('error', done).off('close', closed)
      error ? reject(error) : resolve(value)
    }
    socket.once('error', done).once('close', closed)
    start((value) => done(null, value))
  })
}

async function connect () {
  const socket = new WebSocket(url)
  let backend
  socket.once('upgrade', (response) => { backend = response.headers['x-backend'] })
  await answer(socket, 'upgrade', (found) => socket.once('open', found))
  return { socket, backend: backend ?? '(no x-backend: a plugin answered)' }
}

async function echo (socket, sent) {
  const isText = typeof sent === 'string'
  const [data, isBinary] = await answer(socket, 'echo', (found) => {
    socket.once('message', (data, isBinary) => found([data, isBinary]))
    socket.send(sent)
  })
  if (isBinary === isText || !data.equals(Buffer.from(sent))) {
    throw new Error(`the echo of a ${isText ? 'text' : 'binary'} message differs`)
  }
}

const open = []
try {
  for (let i = 1; i <= connections; i++) {
    const { socket, backend } = await connect()
    open.push(socket)
    await echo(socket, `hello from connection ${i}: grüße, 你好`)
    await echo(socket, randomBytes(1000))
    console.log(`${i} ${backend} echo ok`)
  }
} catch (error) {
  console.error(`failed: ${error.message || error.code}`)
  process.exitCode = 1
} finally {
  for (const socket of open) socket.close(1000)
}
