// Vite's development server, which says when a page has run.
//
//   node server.js [PORT]      5173 without it
//   node server.js --stdin     at the listening socket that is its standard input, as inetd's servers are: who
//                              starts it again keeps the socket meanwhile, and connections wait in it

import { createServer as createHttpServer } from 'node:http'
import { createServer } from 'vite'

const where = process.argv[2] === '--stdin' ? { fd: 0 } : { host: '127.0.0.1', port: Number(process.argv[2] ?? 5173) }

const http = createHttpServer()
const vite = await createServer({
  root: import.meta.dirname ?? new URL('.', import.meta.url).pathname,
  configFile: false,
  logLevel: 'error',
  server: { middlewareMode: true, hmr: { server: http } },
  optimizeDeps: { noDiscovery: true }
})

http.on('request', (request, response) => {
  if (request.method === 'POST' && request.url === '/here') {
    console.log(`page of ${process.pid}`)
    response.end()
  } else {
    vite.middlewares(request, response)
  }
})
http.listen(where, () => console.log(`listening on 127.0.0.1:${http.address().port}`))
