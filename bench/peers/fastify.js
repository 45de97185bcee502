// A receiver on Node.js: Fastify and pg, one prepared insert and its commit for every request.
import { timingSafeEqual } from "node:crypto";
import Fastify from "fastify";
import pg from "pg";

const insert = { name: "insert", text: "INSERT INTO deliveries (body) VALUES ($1) RETURNING id" };
const secret = Buffer.from(process.env.SIGNING_SECRET);
const pool = new pg.Pool({ max: 16 });
const app = Fastify({ bodyLimit: 5 * 1024 * 1024 });

app.addContentTypeParser("application/json", { parseAs: "string" }, (request, body, done) => done(null, body));

app.get("/healthz", async () => ({ status: "ok" }));

app.post("/callbacks/products", async (request, reply) => {
  const given = Buffer.from(request.headers["x-signing-secret"] ?? "");
  if (given.length !== secret.length || !timingSafeEqual(given, secret)) return reply.code(401).send();
  const { rows } = await pool.query({ ...insert, values: [request.body] });
  return { status: "accepted", delivery_id: rows[0].id };
});

await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
process.on("SIGTERM", () => app.close().then(() => process.exit(0)));
