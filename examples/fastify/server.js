// One Fastify server: JSON over HTTP at `/`, an echo over WebSocket at `/websocket`.
//
//   node server.js [PORT]      or the environment's PORT; 3001 without either, 0 for a free one
//
// Every answer, that to a WebSocket upgrade too, names this server in `x-backend`, so that a
// client can see where it landed without a byte of the echo being changed.

import Fastify from 'fastify'
import websocket from '@fastify/websocket'

const port = Number(process.argv[2] ?? process.env.PORT ?? 3001)
let name = `127.0.0.1:${port}`

const fastify = Fastify({ logger: false })
await fastify.register(websocket)

// @fastify/websocket answers the upgrade itself, so hooks on the reply do not reach it; `headers`
// is the event that the ws server raises just before it writes the 101.
fastify.websocketServer.on('headers', (headers) => headers.push(`x-backend: ${name}`))
fastify.addHook('onSend', async (_request, reply) => { reply.header('x-backend', name) })

fastify.get('/', async () => ({ hello: 'world' }))

fastify.get('/websocket', { websocket: true }, (socket) => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }))
})

await fastify.listen({ host: '127.0.0.1', port })
name = `127.0.0.1:${fastify.server.address().port}`
console.log(`listening on ${name}`)

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => fastify.close().then(() => process.exit(0)))
}
