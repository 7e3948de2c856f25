// Both ends of sessions in one process: a backend of `ws` that does as each request's query says, and
// clients of `ws`. What comes to an end is kept in order, so nothing is missed and nothing is waited
// for but what has to come.

import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { inspect } from 'node:util'
import { WebSocket, WebSocketServer } from './ws.mjs'

const PATIENCE_MS = 20_000

/** Sessions that a client has asked for and the backend has not seen yet, by their number. */
const awaited = new Map()
let sessions = 0

/** Starts the backend; resolves to its address. */
export async function listen () {
  const http = createServer()
  http.on('upgrade', accept)
  await new Promise((resolve) => http.listen(0, '127.0.0.1', resolve))
  return `127.0.0.1:${http.address().port}`
}

function accept (request, socket, head) {
  const { session, deflate, chooses } = JSON.parse(new URL(request.url, 'http://any').searchParams.get('as'))
  const server = new WebSocketServer({
    noServer: true,
    perMessageDeflate: deflate,
    handleProtocols: () => chooses ?? false
  })
  server.handleUpgrade(request, socket, head, (socket) => {
    const end = new End(socket, request.socket)
    end.offered = request.headers['sec-websocket-extensions']
    end.subprotocols = request.headers['sec-websocket-protocol']
    awaited.get(session)?.(end)
  })
}

/**
 * Opens a session at `url`. `client` and `server` are their permessage-deflate, as `ws` takes it;
 * `offers` are the client's subprotocols, and `chooses` the backend's choice. The backend's end is
 * missing where `url` leads to a handler.
 */
export async function open (url, { client = false, server = false, offers = [], chooses, isHandler = false } = {}) {
  const session = ++sessions
  const backend = isHandler || new Promise((resolve) => awaited.set(session, resolve))
  const as = encodeURIComponent(JSON.stringify({ session, deflate: server, chooses }))
  const socket = new WebSocket(`${url}?as=${as}`, offers, { perMessageDeflate: client })
  const end = new End(socket)
  socket.once('upgrade', ({ headers, socket: connection }) => {
    end.connection = connection
    end.handshake = { written: connection.bytesWritten, read: connection.bytesRead }
    end.agreed = headers['sec-websocket-extensions']
    end.subprotocol = headers['sec-websocket-protocol']
  })
  await inTime('the handshake', new Promise((resolve, reject) => {
    socket.once('open', resolve).once('error', reject)
  }))
  if (isHandler) return { client: end }
  return { client: end, backend: await inTime('the backend', backend).finally(() => awaited.delete(session)) }
}

/**
 * One end of a session, and what has come to it and was not taken yet. `connection` is its TCP socket,
 * which counts bytes.
 */
class End {
  #came = []
  #wanted

  constructor (socket, connection) {
    this.socket = socket
    this.connection = connection
    const came = (what) => {
      this.#came.push(what)
      this.#wanted?.()
    }
    socket.on('message', (data, isBinary) => came({ is: isBinary ? 'binary' : 'text', data }))
    socket.on('ping', (data) => came({ is: 'ping', data }))
    socket.on('pong', (data) => came({ is: 'pong', data }))
    socket.on('close', (code, reason) => came({ is: 'close', code, reason: reason.toString() }))
    socket.on('error', (error) => came({ is: `error: ${error.message}` }))
  }

  send (data, options = {}) {
    this.socket.send(data, options)
  }

  /** The next thing that comes. */
  async next () {
    if (this.#came.length === 0) {
      await inTime('something to come', new Promise((resolve) => { this.#wanted = resolve }))
      this.#wanted = undefined
    }
    return this.#came.shift()
  }

  /** Takes the next thing, which has to be this. */
  async gets (is, data) {
    const next = await this.next()
    assert.equal(next.is, is, `a ${is} should have come, not ${inspect(next)}`)
    // Of 16 MiB nobody wants to see the difference.
    const isSame = Buffer.from(data).equals(next.data)
    assert.ok(isSame, `a ${is} of ${next.data.length} bytes differs from that of ${data.length} that was sent`)
  }

  /** Takes the next thing, which has to be the end. */
  async closes (code, reason = '') {
    assert.deepEqual(await this.next(), { is: 'close', code, reason })
  }
}

/** What `promise` comes to; rejects if it takes too long. */
function inTime (what, promise) {
  let late
  const deadline = new Promise((resolve, reject) => {
    late = setTimeout(() => reject(new Error(`waited ${PATIENCE_MS} ms for ${what}`)), PATIENCE_MS)
  })
  return Promise.race([promise, deadline]).finally(() => clearTimeout(late))
}

/** Asks until `holds` resolves to something true, and returns that. */
export async function eventually (what, holds) {
  const began = Date.now()
  for (;;) {
    const found = await holds()
    if (found) return found
    assert.ok(Date.now() - began < PATIENCE_MS, `not within ${PATIENCE_MS} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
