// Starts one server.js per port, each a process of its own, so that one can be killed alone.
//
//   node servers.js [PORT...]      3001 3002 3003 without any

import { fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const server = fileURLToPath(new URL('server.js', import.meta.url))
const ports = process.argv.length > 2 ? process.argv.slice(2) : ['3001', '3002', '3003']

const children = ports.map((port) => {
  const child = fork(server, [port])
  console.log(`server for port ${port}: process ${child.pid}`)
  child.once('exit', (code, signal) => console.log(`server for port ${port} ended: ${signal ?? code}`))
  return child
})

// A terminal's Ctrl-C reaches the children by itself; a SIGTERM to this process alone does not.
process.once('SIGINT', () => {})
process.once('SIGTERM', () => children.forEach((child) => child.kill('SIGTERM')))
