// Rooms full of clients that talk all at once. Checks that everyone hears everything that is said in
// its room, once, and what one sender says in the order in which it was said; and that somebody who
// comes at the end is told how many are there, and the last of what they said. Prints a line for each
// room; exits 1 if something is missing, doubled, out of order or in the wrong room.
//
//   node client.js [URL] [CLIENTS] [ROOMS] [MESSAGES]
//
//   ws://127.0.0.1:8080/chat, 100 clients in 10 rooms, and 20 messages of each client without

import { randomUUID } from 'node:crypto'
import WebSocket from 'ws'

const url = process.argv[2] ?? 'ws://127.0.0.1:8080/chat'
const nClients = Number(process.argv[3] ?? 100)
const nRooms = Math.min(Number(process.argv[4] ?? 10), nClients)
const nMessages = Number(process.argv[5] ?? 20)
const PATIENCE_MS = 30_000

/** So many connect at the same time. */
const CONNECTING_MAX = 50

/** No other run of this talks in these rooms. */
const run = randomUUID().slice(0, 8)

class Client {
  constructor (room, name) {
    this.room = room
    this.name = name
    /** The number of the last message heard, by sender. */
    this.heard = new Map()
    /** The room's numbers of what was heard: each must be another one. */
    this.seqs = new Set()
    this.nHeard = 0
    this.waiting = null
  }

  async enter () {
    const query = new URLSearchParams({ room: this.room, name: this.name })
    this.socket = new WebSocket(`${url}?${query}`)
    this.socket.on('message', (data) => this.take(JSON.parse(data)))
    this.socket.on('error', (error) => this.fail(error.message || error.code))
    this.socket.on('close', (code) => this.fail(`closed with ${code}`))
    await this.until(() => this.welcome, 'a welcome')
    if (this.welcome.room !== this.room || this.welcome.you !== this.name) {
      this.fail(`welcomed as ${JSON.stringify(this.welcome)}`)
    }
  }

  take (event) {
    if (event.type === 'welcome') this.welcome = event
    else if (event.type === 'said') this.hear(event)
    else if (event.type !== 'joined' && event.type !== 'left') this.fail(JSON.stringify(event))
    if (this.waiting?.isDone()) this.waiting.resolve()
  }

  hear ({ room, from, text, seq }) {
    const last = this.heard.get(from) ?? 0
    const number = Number(text)
    if (room !== this.room) return this.fail(`heard what was said in ${room}`)
    if (number !== last + 1) return this.fail(`heard ${number} of ${from} after ${last}`)
    if (this.seqs.has(seq)) return this.fail(`heard seq ${seq} twice`)
    this.heard.set(from, number)
    this.seqs.add(seq)
    this.nHeard++
  }

  /** Says the next when it has heard the last: in the room's order, behind what others say. */
  async talk () {
    for (let number = 1; number <= nMessages; number++) {
      this.socket.send(JSON.stringify({ type: 'say', text: String(number) }))
      await this.until(() => this.heard.get(this.name) === number, `its message ${number}`)
    }
  }

  /** Waits until `isDone`; fails after PATIENCE_MS, or with the client. */
  async until (isDone, what) {
    if (this.failed) throw this.failed
    if (isDone()) return
    let late
    try {
      await new Promise((resolve, reject) => {
        late = setTimeout(() => this.fail(`no ${what} within ${PATIENCE_MS} ms`), PATIENCE_MS)
        this.waiting = { isDone, resolve, reject }
      })
    } finally {
      clearTimeout(late)
      this.waiting = null
    }
  }

  fail (what) {
    this.failed ??= new Error(`${this.name} in ${this.room}: ${what}`)
    this.waiting?.reject(this.failed)
  }

  /** What somebody who comes after all the others is told of them. */
  checkWelcome ({ length: n }) {
    const { present, history } = this.welcome
    const first = n * nMessages - history.length + 1
    const isInOrder = history.every(({ seq }, i) => seq === first + i)
    if (present !== n + 1) this.fail(`${present} are present, not ${n + 1}`)
    if (!isInOrder) this.fail(`the history is ${history.map(({ seq }) => seq)}`)
  }

  leave () {
    this.socket?.removeAllListeners('close').close(1000)
  }
}

const rooms = Array.from({ length: nRooms }, () => [])
for (let i = 0; i < nClients; i++) {
  const room = i % nRooms
  rooms[room].push(new Client(`${run}-${room}`, `client ${i}`))
}
const clients = rooms.flat()

try {
  for (let i = 0; i < nClients; i += CONNECTING_MAX) {
    await Promise.all(clients.slice(i, i + CONNECTING_MAX).map((client) => client.enter()))
  }
  const begun = performance.now()
  await Promise.all(clients.map((client) => client.talk()))
  await Promise.all(rooms.flatMap((members) => {
    const all = members.length * nMessages
    return members.map((client) => client.until(() => client.nHeard >= all, `${all} messages`))
  }))
  const ms = Math.round(performance.now() - begun)
  for (const members of rooms) {
    const late = new Client(members[0].room, 'late')
    clients.push(late)
    await late.enter()
    late.checkWelcome(members)
  }
  // What comes too often would come now.
  await new Promise((resolve) => setTimeout(resolve, 200))
  for (const { failed } of clients) if (failed) throw failed

  for (const members of rooms) {
    console.log(`${members[0].room} ${members.length} clients heard ${members.length * nMessages} messages ok`)
  }
  const nHeard = clients.reduce((sum, client) => sum + client.nHeard, 0)
  console.log(`${nHeard} deliveries in ${ms} ms, each once and in order`)
} catch (error) {
  console.error(`failed: ${error.message}`)
  process.exitCode = 1
} finally {
  for (const client of clients) client.leave()
}
