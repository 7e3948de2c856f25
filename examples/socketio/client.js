// Clients as browsers have them: each begins by polling over plain HTTP, several requests of it, and
// then upgrades to a WebSocket. All of that has to reach one server. Prints a line for each client.
//
//   node client.js [URL] [CLIENTS] [--wait]
//
// With --wait they stay until one of them is disconnected; it reconnects by itself, and says where.

import { io } from 'socket.io-client'

const url = process.argv[2] ?? 'http://127.0.0.1:8080'
const n = Number(process.argv[3] ?? 9)
const waits = process.argv.includes('--wait')

async function connected (i) {
  const socket = io(url, { withCredentials: true, forceNew: true, timeout: 5000, reconnectionDelay: 50 })
  const first = { upgraded: deferred(), server: deferred() }
  socket.io.engine.on('upgrade', (transport) => first.upgraded.resolve(transport.name))
  socket.on('server', (name) => first.server.resolve(name))
  socket.on('connect_error', (error) => first.server.reject(error))
  const server = await first.server.promise
  const transport = await first.upgraded.promise
  const text = `client ${i}`
  const echo = await socket.timeout(5000).emitWithAck('echo', text)
  if (echo !== text) throw new Error(`client ${i} got another echo: ${echo}`)
  console.log(`${i} ${server} ${transport} echo ok`)
  return { i, server, socket }
}

function deferred () {
  const made = {}
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }))
  return made
}

const clients = []
for (let i = 1; i <= n; i++) clients.push(await connected(i))
if (waits) {
  console.log('waiting')
  const moved = clients.map(({ i, server, socket }) => new Promise((resolve) => {
    socket.on('disconnect', () => socket.once('server', (name) => {
      console.log(`${i} ${server} -> ${name}`)
      resolve()
    }))
  }))
  await Promise.race(moved)
}
for (const { socket } of clients) socket.close()
process.exit(0)
