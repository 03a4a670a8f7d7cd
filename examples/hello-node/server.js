// Answers with a greeting; no packages.
const http = require("node:http");

const server = http.createServer((request, response) => {
  request.resume();
  request.on("end", () => {
    console.log(`${request.method} ${request.url} request ${request.headers["x-request-id"] ?? "none"}`);
    const body = `Hello from Node ${process.version}, process ${process.pid}\n`;
    response.writeHead(200, { "content-type": "text/plain; charset=utf-8", "content-length": body.length });
    response.end(body);
  });
});

// Dirigent closes idle connections itself: a server that closes first would race with a request.
server.keepAliveTimeout = 0;
server.listen(Number(process.env.PORT ?? 8080), process.env.HOST ?? "127.0.0.1");
process.on("SIGTERM", () => process.exit(0));
