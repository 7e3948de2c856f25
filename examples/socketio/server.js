// One Socket.IO server: says its name to whoever connects, and echoes.
//
//   node server.js [PORT] [PING_MS]      3001 without it, 0 for a free one; how often it pings, 25000 without it

import { createServer } from 'node:http'
import { Server } from 'socket.io'

const port = Number(process.argv[2] ?? 3001)
const http = createServer()
const io = new Server(http, { pingInterval: Number(process.argv[3] ?? 25000) })

http.listen(port, '127.0.0.1', () => {
  const name = `127.0.0.1:${http.address().port}`
  io.on('connection', (socket) => {
    socket.emit('server', name)
    socket.on('echo', (text, answer) => answer(text))
  })
  console.log(`listening on ${name}`)
})

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => io.close(() => process.exit(0)))
}
