// Runs in a browser: opens WebSockets over each way to the server it came from, and posts what it found
// to `/result`, as `{ browser, ways: { WAY: { extensions, ... } } }` or `{ failed }`.

const MIB = 1024 * 1024
const PATIENCE_MS = 20_000

/** One WebSocket, and what has come and was not taken yet. */
class Session {
  #came = []
  #wanted

  constructor (way, offers = []) {
    this.socket = new WebSocket(`ws://${location.host}/${way}`, offers)
    const came = (what) => {
      this.#came.push(what)
      this.#wanted?.()
    }
    this.socket.onopen = () => came({ is: 'open' })
    this.socket.onmessage = ({ data }) => came({ is: 'message', data })
    this.socket.onclose = ({ code, reason, wasClean }) => came({ is: 'close', code, reason, wasClean })
  }

  async takes (is) {
    if (this.#came.length === 0) {
      await Promise.race([new Promise((resolve) => { this.#wanted = resolve }), late(is)])
    }
    const next = this.#came.shift()
    if (next.is !== is) throw new Error(`${next.is} ${next.code} in place of ${is}`)
    return next
  }
}

async function open (way, offers) {
  const session = new Session(way, offers)
  await session.takes('open')
  return session
}

function late (what) {
  return new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`no ${what} within ${PATIENCE_MS} ms`)), PATIENCE_MS)
  })
}

/** What Chromium offers by itself is agreed on, unless the route strips it. */
async function extensions (way) {
  const agreed = []
  for (const path of [way, `strip/${way}`]) {
    const session = await open(path)
    // Compressed where that was agreed on.
    await echo(session, 'compressible, '.repeat(1000))
    agreed.push(session.socket.extensions)
    session.socket.close()
    await session.takes('close')
  }
  return agreed
}

/** The choice, and what becomes of a session for which nothing is chosen. */
async function subprotocols (way) {
  const seen = []
  for (const offers of [['v1', 'v2'], ['v1'], []]) {
    const session = new Session(way, offers)
    try {
      await session.takes('open')
      seen.push(session.socket.protocol)
      session.socket.close()
      await session.takes('close')
    } catch (error) {
      seen.push(error.message)
    }
  }
  return seen
}

/** Text, ArrayBuffer and Blob of every size, each back as it was sent. */
async function sizes (way) {
  const session = await open(way)
  let messages = 0
  for (const size of [1, 125, 126, 65_535, 65_536, MIB + 1, 16 * MIB]) {
    const bytes = random(size)
    await echo(session, text(size))
    await echo(session, bytes)
    await echo(session, new Blob([bytes]))
    await echo(session, new Uint8Array(size).fill(0xff))
    messages += 4
  }
  session.socket.close()
  await session.takes('close')
  return messages
}

async function echo (session, sent) {
  session.socket.binaryType = sent instanceof Blob ? 'blob' : 'arraybuffer'
  session.socket.send(sent)
  const { data } = await session.takes('message')
  const kinds = { string: 'string', Blob: 'Blob', Uint8Array: 'ArrayBuffer' }
  const kind = (value) => typeof value === 'string' ? 'string' : value.constructor.name
  if (kind(data) !== kinds[kind(sent)]) throw new Error(`${kind(sent)} came back as ${kind(data)}`)
  const [a, b] = await Promise.all([sent, data].map(comparable))
  if (a.length !== b.length || a.some((element, i) => element !== b[i])) {
    throw new Error(`${kind(sent)} of ${a.length} came back as another of ${b.length}`)
  }
}

/** An array, whose elements are the whole text or bytes. */
async function comparable (value) {
  if (typeof value === 'string') return [value]
  return new Uint8Array(value instanceof Blob ? await value.arrayBuffer() : value)
}

/** Messages that are under way together. */
async function order (way) {
  const session = await open(way)
  for (let i = 0; i < 200; i++) session.socket.send(`${i} ${'x'.repeat((i * 7919) % 5000)}`)
  let inOrder = 0
  for (let i = 0; i < 200; i++) {
    const { data } = await session.takes('message')
    if (data === `${i} ${'x'.repeat((i * 7919) % 5000)}`) inOrder++
  }
  session.socket.close()
  await session.takes('close')
  return inOrder
}

/** As the page hears of the end: `code reason`, and whether both sides had agreed on it. */
async function closes (way) {
  const heard = []
  for (const args of [[1000, 'done'], [3000, 'grüße'], [4999], []]) {
    const session = await open(way)
    session.socket.close(...args)
    const { code, reason, wasClean } = await session.takes('close')
    heard.push(`${code} ${reason} ${wasClean}`)
  }
  if (way === 'echo') return heard
  for (const asked of ['1001 away', '4000 grüße']) {
    const session = await open(way)
    session.socket.send(`leave with ${asked}`)
    const { code, reason, wasClean } = await session.takes('close')
    heard.push(`${code} ${reason} ${wasClean}`)
  }
  return heard
}

function random (size) {
  const bytes = new Uint8Array(size)
  // The most that is given out at a time.
  for (let at = 0; at < size; at += 65_536) crypto.getRandomValues(bytes.subarray(at, at + 65_536))
  return bytes
}

/** Text of `size` bytes: ASCII, with a character of each other length where there is room. */
function text (size) {
  const head = size < 20 ? '' : 'ü你🙂'
  const ascii = Array.from(random(Math.min(size, 50_000)), (byte) => String.fromCharCode(32 + byte % 95)).join('')
  const rest = size - new TextEncoder().encode(head).length
  return head + ascii.repeat(Math.ceil(rest / ascii.length)).slice(0, rest)
}

async function all () {
  const ways = {}
  for (const way of ['relay', 'filtered', 'echo']) {
    ways[way] = {}
    for (const found of [extensions, subprotocols, sizes, order, closes]) {
      try {
        ways[way][found.name] = await found(way)
      } catch (error) {
        throw new Error(`${way}, ${found.name}: ${error.message}`)
      }
    }
  }
  return { browser: navigator.userAgent, ways }
}

const result = await all().catch((error) => ({ failed: error.message }))
await fetch('/result', { method: 'POST', body: JSON.stringify(result) })
