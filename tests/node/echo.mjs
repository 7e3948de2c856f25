// An echo server of `ws` that compresses what it can: what Pointsman's conformance is compared with.

import { WebSocketServer } from './ws.mjs'

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: 0,
  maxPayload: 64 * 1024 * 1024,
  perMessageDeflate: { threshold: 0 }
})
server.on('listening', () => console.log(`listening on 127.0.0.1:${server.address().port}`))
server.on('connection', (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }))
  // What a client does wrong is what this is about.
  socket.on('error', () => {})
})
