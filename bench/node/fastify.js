// Fastify with @fastify/websocket in one process: an echo at `/websocket`, JSON at `/`.
//
//   node fastify.js PORT

import Fastify from 'fastify'
import websocket from '@fastify/websocket'

const fastify = Fastify({ logger: false })
await fastify.register(websocket)

fastify.get('/', async () => ({ hello: 'world' }))

fastify.get('/websocket', { websocket: true }, (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }))
})

await fastify.listen({ host: '127.0.0.1', port: Number(process.argv[2]) })
