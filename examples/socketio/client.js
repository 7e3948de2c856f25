// Clients as browsers have them: each begins by polling over plain HTTP, several requests of it, and
// then upgrades to a WebSocket. All of that has to reach one server. Prints a line for each client.
//
//   node client.js [URL] [CLIENTS] [--wait | --polling SECONDS]
//
// With --wait they stay until one of them is disconnected; it reconnects by itself, and says where. With --polling
// they never upgrade, and stay for so long: none may be disconnected meanwhile.

import { io } from 'socket.io-client'

const url = process.argv[2] ?? 'http://127.0.0.1:8080'
const n = Number(process.argv[3] ?? 9)
const waits = process.argv.includes('--wait')
const polling = process.argv.indexOf('--polling')
const seconds = polling < 0 ? 0 : Number(process.argv[polling + 1])

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

// One that polls: most of the time a request of it waits for its answer, as long as nothing happens.
async function polled (i) {
  const transports = ['polling']
  const socket = io(url, { transports, withCredentials: true, forceNew: true, reconnection: false })
  const disconnected = new Promise((resolve, reject) => {
    socket.on('disconnect', (reason, details) => {
      reject(new Error(`client ${i} was disconnected: ${reason} ${details?.description?.status ?? ''}`))
    })
    socket.on('connect_error', reject)
  })
  const server = await Promise.race([new Promise((resolve) => socket.once('server', resolve)), disconnected])
  await Promise.race([new Promise((resolve) => setTimeout(resolve, seconds * 1000)), disconnected])
  const echo = await Promise.race([socket.timeout(5000).emitWithAck('echo', server), disconnected])
  if (echo !== server) throw new Error(`client ${i} got another echo: ${echo}`)
  console.log(`${i} ${server} ${socket.io.engine.transport.name} for ${seconds} s ok`)
}

if (seconds > 0) {
  const all = Array.from({ length: n }, (_, i) => polled(i + 1))
  await Promise.all(all)
  process.exit(0)
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
