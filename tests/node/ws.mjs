// The `ws` package that the Fastify example locks: tests of messages install none of their own.

import { createRequire } from 'node:module'

const { WebSocket, WebSocketServer } =
  createRequire(new URL('../../examples/fastify/', import.meta.url))('ws')

export { WebSocket, WebSocketServer }
