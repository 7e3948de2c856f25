// Says to the server that it has run: the server prints a line for each time.
document.getElementById('loaded').textContent = `loaded at ${new Date().toLocaleTimeString()}`
// By now Vite's client has its WebSocket, over which it hears that the server is gone.
import.meta.hot.on('vite:ws:connect', () => fetch('/here', { method: 'POST' }))
