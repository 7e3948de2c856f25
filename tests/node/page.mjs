// What Chromium visits: a server for plain requests and for WebSockets that echo.
//
//   node page.mjs
//
// Says `listening on ADDRESS`, and then, a line each, what pages post to `/result`. `/` is `page.html`,
// which asks for `page.js`; every WebSocket gets the subprotocol `v2` if it offers that.

import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { WebSocketServer } from './ws.mjs'

const TYPES = { '/page.html': 'text/html', '/page.js': 'text/javascript' }

const http = createServer(async (request, response) => {
  const path = request.url === '/' ? '/page.html' : request.url
  if (request.method === 'POST' && path === '/result') {
    request.setEncoding('utf8')
    let result = ''
    for await (const piece of request) result += piece
    console.log(result)
    response.end()
  } else if (path in TYPES) {
    response.setHeader('content-type', `${TYPES[path]}; charset=utf-8`)
    response.end(await readFile(new URL(`.${path}`, import.meta.url)))
  } else {
    response.statusCode = 404
    response.end()
  }
})

const server = new WebSocketServer({
  server: http,
  perMessageDeflate: { zlibDeflateOptions: { level: 1 } },
  handleProtocols: (offered) => offered.has('v2') && 'v2'
})
server.on('connection', (socket) => {
  socket.on('message', (data, isBinary) => {
    // A page asks for the backend's own Close, by its code and reason.
    const [, code, reason] = data.toString('utf8', 0, 200).match(/^leave with (\d+) (.*)$/) ?? []
    if (code) socket.close(Number(code), reason)
    else socket.send(data, { binary: isBinary })
  })
})

http.listen(0, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${http.address().port}`))
