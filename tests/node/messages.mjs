// Sessions of `ws` clients with `ws` backends and with a handler, through Pointsman.
//
//   node messages.mjs STORY
//
// Says `listening on ADDRESS`, which is the backend, reads one line of JSON with the `ws://` address of
// the balancer and the `http://` address of its admin page, and lives the story over each way: the
// routes `/relay`, `/filtered` and `/echo`. A line for each way that is done; exits 1 at what is wrong.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { eventually, listen, open } from './ends.mjs'

const WAYS = ['relay', 'filtered', 'echo']
const KIB = 1024
const MIB = 1024 * KIB

/** Does not slow the sender down at what cannot be made smaller. */
const FAST = { zlibDeflateOptions: { level: 1 } }

const stories = { compression, strip, subprotocols, fragments, pings, closes, ends, sizes, order }

const backend = await listen()
console.log(`listening on ${backend}`)
const [line] = await once(createInterface(process.stdin), 'line')
const { balancer, admin } = JSON.parse(line)
try {
  const story = stories[process.argv[2]]
  for (const way of WAYS) console.log(`${way}: ${await story(way)}`)
  process.exit(0)
} catch (error) {
  console.log(`failed: ${error.stack}`)
  process.exit(1)
}

function over (way, options) {
  return open(`${balancer}/${way}`, { ...options, isHandler: way.endsWith('echo') })
}

/** Sends a message the whole way, and back. */
async function thereAndBack ({ client, backend }, is, data) {
  const options = { binary: is === 'binary' }
  client.send(data, options)
  if (backend) {
    await backend.gets(is, data)
    backend.send(data, options)
  }
  await client.gets(is, data)
}

async function close ({ client, backend }) {
  client.socket.close(1000, 'done')
  await backend?.closes(1000, 'done')
  // A handler answers with the code alone.
  await client.closes(1000, backend ? 'done' : '')
}

/** What is agreed on is what a direct connection agrees on, and each side does what was agreed on. */
async function compression (way) {
  const on = {}
  const off = false
  const noContext = { serverNoContextTakeover: true, clientNoContextTakeover: true }
  const bits = (n) => ({ serverMaxWindowBits: n, clientMaxWindowBits: n })
  // Client, backend; and what a handler answers, which knows no wish of its own.
  const cases = [
    [off, off, undefined],
    [off, on, undefined],
    [on, off, 'permessage-deflate'],
    [on, on, 'permessage-deflate'],
    [noContext, on, 'permessage-deflate; server_no_context_takeover; client_no_context_takeover'],
    [on, noContext, 'permessage-deflate'],
    [{ serverNoContextTakeover: true }, on, 'permessage-deflate; server_no_context_takeover'],
    [on, { clientNoContextTakeover: true }, 'permessage-deflate'],
    [bits(9), on, 'permessage-deflate; server_max_window_bits=9; client_max_window_bits=9'],
    [on, bits(9), 'permessage-deflate'],
    [bits(15), on, 'permessage-deflate; server_max_window_bits=15; client_max_window_bits=15'],
    [on, bits(15), 'permessage-deflate']
  ]
  for (const [client, server, byHandler] of cases) {
    const expected = way === 'echo' ? byHandler : await agreedDirectly({ client, server })
    const before = await counted(way)
    const session = await over(way, { client, server })
    const what = JSON.stringify({ way, client, server })
    assert.equal(session.client.agreed, expected, what)
    for (const end of Object.values(session)) {
      assert.equal(end.socket.extensions, expected ? 'permessage-deflate' : '', what)
    }
    await spares(session, expected, what)
    await close(session)
    const { connection, handshake } = session.client
    assert.deepEqual(await counted(way), {
      up: before.up + connection.bytesWritten - handshake.written,
      down: before.down + connection.bytesRead - handshake.read
    }, what)
  }
  return `${cases.length} agreements`
}

async function agreedDirectly (options) {
  const session = await open(`ws://${backend}/`, options)
  await close(session)
  return session.client.agreed
}

/** Whether the wire carries as little as `agreed` makes it, on both sides and in both directions. */
async function spares (session, agreed, what) {
  const { client, backend } = session
  const parameters = (agreed ?? '').split('; ')
  // The same again is next to nothing where the window reaches back to the message before.
  const remembers = (sender) => agreed !== undefined &&
    !parameters.includes(`${sender}_no_context_takeover`) &&
    !parameters.includes(`${sender}_max_window_bits=9`)
  const wire = () => [
    ['client', client.connection.bytesWritten],
    ['server', client.connection.bytesRead],
    // The other side of the balancer, where there is one.
    ['client', backend?.connection.bytesRead],
    ['server', backend?.connection.bytesWritten]
  ]
  const bytesOf = async (is, message, times) => {
    const before = wire()
    for (let i = 0; i < times; i++) await thereAndBack(session, is, message)
    return wire().map(([sender, bytes], i) => [sender, bytes - before[i][1]]).filter(([, bytes]) => bytes >= 0)
  }

  const random = randomBytes(8 * KIB)
  for (const [sender, bytes] of await bytesOf('binary', random, 10)) {
    const is = `${bytes} bytes of ${10 * random.length} that repeat, by the ${sender}: ${what}`
    if (remembers(sender)) assert.ok(bytes < 2 * random.length, is)
    else assert.ok(bytes > 9.9 * random.length, is)
  }
  const text = Buffer.from('{"id":1234,"name":"grüße"},'.repeat(1000))
  for (const [sender, bytes] of await bytesOf('text', text, 10)) {
    const is = `${bytes} bytes of ${10 * text.length} within messages, by the ${sender}: ${what}`
    if (agreed !== undefined) assert.ok(bytes < 2 * text.length, is)
    else assert.ok(bytes > 10 * text.length, is)
  }
}

/** What the balancer says that all sessions of a way have moved, once they are over. */
function counted (way) {
  const number = (page, sample) => Number(page.split('\n').find((line) => line.startsWith(sample))?.split(' ')[1] ?? 0)
  const bytes = (page, direction) =>
    number(page, `pointsman_bytes_total{target="${way}",direction="${direction}"}`)
  return eventually('its sessions are over', async () => {
    const page = await (await fetch(`${admin}/metrics`)).text()
    const isOver = number(page, `pointsman_sessions{target="${way}"}`) === 0
    return isOver && { up: bytes(page, 'up'), down: bytes(page, 'down') }
  })
}

/** Where the route says so, compression is neither offered nor agreed on. */
async function strip (way) {
  const session = await over(`strip/${way}`, { client: FAST, server: FAST })
  assert.equal(session.client.agreed, undefined)
  for (const end of Object.values(session)) assert.equal(end.socket.extensions, '')
  assert.equal(session.backend?.offered, undefined)
  const text = Buffer.alloc(100 * KIB, 'x')
  const before = session.client.connection.bytesWritten
  await thereAndBack(session, 'text', text)
  assert.ok(session.client.connection.bytesWritten - before > text.length)
  await close(session)
  return 'nothing agreed on'
}

/** The backend's choice is what the client sees; and that it made none. */
async function subprotocols (way) {
  const isHandler = way === 'echo'
  const offers = ['chat.v1', 'chat.v2', 'chat.v3']
  if (!isHandler) {
    for (const chooses of offers) {
      const session = await over(way, { offers, chooses })
      assert.equal(session.backend.subprotocols, offers.join(','))
      assert.equal(session.backend.socket.protocol, chooses)
      assert.equal(session.client.subprotocol, chooses)
      assert.equal(session.client.socket.protocol, chooses)
      await close(session)
    }
  }
  // A client that has offered some takes it ill when none is chosen: `ws` does, and browsers do.
  await assert.rejects(over(way, { offers }), { message: 'Server sent no subprotocol' })
  const session = await over(way)
  assert.equal(session.backend?.subprotocols, undefined)
  assert.equal(session.client.subprotocol, undefined)
  await close(session)
  return 'chosen and not chosen'
}

/** A message in pieces arrives whole, and a ping between them arrives before it. */
async function fragments (way) {
  let messages = 0
  for (const deflate of [false, FAST]) {
    const session = await over(way, { client: deflate, server: deflate })
    const { client, backend } = session
    for (const [is, sizes] of [
      ['text', [3, 2]],
      ['binary', [0, 1, 0, 100, 0]],
      // Some of them longer than what `ws` compresses, others shorter.
      ['text', Array.from({ length: 50 }, (_, i) => i * 97)],
      ['binary', Array.from({ length: 300 }, (_, i) => (i * 7919) % 5000)]
    ]) {
      const whole = is === 'text' ? randomText(sum(sizes)) : randomBytes(sum(sizes))
      const say = (end, payload) => {
        let at = 0
        sizes.forEach((size, i) => {
          const isLast = i === sizes.length - 1
          // Pieces of text may end within a character.
          end.send(whole.subarray(at, at += size), { fin: isLast, binary: is === 'binary' })
          if (i === 0) end.socket.ping(payload)
        })
      }
      say(client, 'from the client')
      if (backend) {
        await backend.gets('ping', 'from the client')
        await backend.gets(is, whole)
        await client.gets('pong', 'from the client')
        say(backend, 'from the backend')
        await client.gets('ping', 'from the backend')
        await client.gets(is, whole)
        await backend.gets('pong', 'from the backend')
      } else {
        await client.gets('pong', 'from the client')
        await client.gets(is, whole)
      }
      messages++
    }
    await close(session)
  }
  return `${messages} messages`
}

/** Pings of either side arrive with what they carry, and so do the pongs. */
async function pings (way) {
  const session = await over(way)
  const { client, backend } = session
  const payloads = [Buffer.alloc(0), Buffer.from('x'), randomBytes(124), randomBytes(125)]
  for (const payload of payloads) client.socket.ping(payload)
  for (const payload of payloads) await backend?.gets('ping', payload)
  for (const payload of payloads) await client.gets('pong', payload)
  for (const payload of backend ? payloads : []) {
    backend.socket.ping(payload)
    await client.gets('ping', payload)
    await backend.gets('pong', payload)
  }
  // Nobody asked for these: one end says that it lives.
  client.socket.pong('alive')
  await backend?.gets('pong', 'alive')
  backend?.socket.pong('alive, too')
  if (backend) await client.gets('pong', 'alive, too')
  await thereAndBack(session, 'text', Buffer.from('and on'))
  await close(session)
  return `${payloads.length} pings`
}

/** A Close arrives with its code and reason behind all that was sent before it, and is answered alike. */
async function closes (way) {
  const reasons = [
    [1000, ''],
    [1001, 'gone'],
    [3000, 'grüße, 你好'],
    [4999, 'x'.repeat(123)],
    // No code: a Close with nothing in it.
    [undefined, '']
  ]
  for (const [code, reason] of reasons) {
    const seen = [code ?? 1005, reason]
    const { client, backend } = await over(way)
    client.send('last words')
    client.socket.close(code, reason)
    await backend?.gets('text', 'last words')
    await backend?.closes(...seen)
    if (backend) await client.closes(...seen)
    else {
      await client.gets('text', 'last words')
      await client.closes(code ?? 1005)
    }
    if (backend) {
      const { client, backend } = await over(way)
      backend.send('last words')
      backend.socket.close(code, reason)
      await client.gets('text', 'last words')
      await client.closes(...seen)
      await backend.closes(...seen)
    }
  }
  return `${reasons.length} codes`
}

/** An end that goes without a Close is missed by the other. */
async function ends (way) {
  const { client, backend } = await over(way)
  await thereAndBack({ client, backend }, 'text', Buffer.from('here'))
  client.socket.terminate()
  await client.closes(1006)
  await backend?.closes(1006)
  if (backend) {
    const { client, backend } = await over(way)
    await thereAndBack({ client, backend }, 'text', Buffer.from('here'))
    backend.socket.terminate()
    await backend.closes(1006)
    await client.closes(1006)
  }
  // Nothing is left of them.
  await counted(way)
  return 'noticed'
}

/** Around every change of a frame's header, and up to what the routes allow. */
async function sizes (way) {
  const sizes = [1, 2, 125, 126, 127, 1000, 65_535, 65_536, 65_537, MIB + 1, 16 * MIB]
  let messages = 0
  for (const deflate of [false, FAST]) {
    const session = await over(way, { client: deflate, server: deflate })
    for (const size of sizes) {
      await thereAndBack(session, 'binary', randomBytes(size))
      await thereAndBack(session, 'text', Buffer.alloc(size, 'all the same, '))
      await thereAndBack(session, 'text', randomText(size))
      await thereAndBack(session, 'binary', Buffer.alloc(size, 0xff))
      messages += 4
    }
    await close(session)
  }
  return `${messages} messages`
}

/** Messages of all kinds, sent both ways at once: each arrives, in its order. */
async function order (way) {
  const N = 200
  for (const deflate of [false, FAST]) {
    const session = await over(way, { client: deflate, server: deflate })
    const { client, backend } = session
    const kind = (i) => i % 3 === 0 ? 'binary' : 'text'
    const message = (from, i) => Buffer.from(`${i} ${from} ${'x'.repeat((i * 7919) % 20_000)}`)
    for (let i = 0; i < N; i++) {
      client.send(message('up', i), { binary: kind(i) === 'binary' })
      backend?.send(message('down', i), { binary: kind(i) === 'binary' })
    }
    for (let i = 0; i < N; i++) await backend?.gets(kind(i), message('up', i))
    for (let i = 0; i < N; i++) await client.gets(kind(i), message(backend ? 'down' : 'up', i))
    await close(session)
  }
  return `${N} messages`
}

function sum (numbers) {
  return numbers.reduce((sum, n) => sum + n, 0)
}

/** As many bytes of text that cannot be made much smaller, with characters of one to four bytes. */
function randomText (bytes) {
  const whole = Buffer.from('grüße, 你好 🙂' + randomBytes(bytes).toString('latin1'))
  let end = bytes
  // Not through a character.
  while ((whole[end] & 0xc0) === 0x80) end--
  return whole.fill('x', end, bytes).subarray(0, bytes)
}
