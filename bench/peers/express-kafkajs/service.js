// The API as an Express service: the same routes, the same checks, the same acknowledgement level.
import { randomUUID } from 'node:crypto';
import cluster from 'node:cluster';
import express from 'express';
import { Redis } from 'ioredis';
import { Kafka, Partitioners, logLevel } from 'kafkajs';

const TYPES = ['LOGIN', 'LOGOUT', 'PRODUCT_VIEW'];
const ALL_IN_SYNC_REPLICAS = -1;
const { PORT, KAFKA_BROKERS, KAFKA_TOPIC, REDIS_URL, REDIS_KEY_PREFIX = 'ua:', PROCESSES = '1' } = process.env;

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** All that is wrong with a request, as messages. */
function complaints(body) {
  if (!isObject(body)) return ['Request body must be a JSON object'];
  const errors = [];
  if (typeof body.userId !== 'string' || body.userId.trim() === '') errors.push('userId is required and must be a non-empty string');
  if (!TYPES.includes(body.eventType)) errors.push(`eventType must be one of: ${TYPES.join(', ')}`);
  if (body.payload !== undefined && !isObject(body.payload)) errors.push('payload must be a JSON object when provided');
  return errors;
}

function eventOf({ userId, eventType, payload = {} }) {
  return { eventId: randomUUID(), userId, eventType, timestamp: new Date().toISOString(), payload };
}

const record = (event) => ({ key: event.userId, value: JSON.stringify(event) });

async function serve() {
  const kafka = new Kafka({ clientId: 'express', brokers: [KAFKA_BROKERS], logLevel: logLevel.ERROR });
  // One producer a process. It is not idempotent: KafkaJS calls that experimental, and then sends one request at a time.
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, allowAutoTopicCreation: false });
  await producer.connect();
  const redis = new Redis(REDIS_URL);
  const publish = (events) =>
    producer.send({ topic: KAFKA_TOPIC, acks: ALL_IN_SYNC_REPLICAS, messages: events.map(record) });

  const app = express();
  app.disable('x-powered-by').disable('etag');
  app.use(express.json({ limit: '8mb' }));

  app.post('/events/generate', async (request, response) => {
    const errors = complaints(request.body);
    if (errors.length > 0) return response.status(400).json({ success: false, message: 'Invalid request payload', errors });
    const event = eventOf(request.body);
    await publish([event]);
    return response
      .status(201)
      .json({ success: true, message: 'Event published successfully', eventId: event.eventId, event });
  });

  app.post('/events/batch', async (request, response) => {
    const items = Array.isArray(request.body) ? request.body : [];
    const results = items.map((item, index) => {
      const errors = complaints(item);
      return errors.length > 0 ? { index, status: 400, errors } : { index, status: 201, event: eventOf(item) };
    });
    const events = results.filter(({ event }) => event).map(({ event }) => event);
    if (events.length > 0) await publish(events);
    return response.json({
      accepted: events.length,
      rejected: results.length - events.length,
      results: results.map(({ event, ...rest }) => (event ? { ...rest, eventId: event.eventId } : rest)),
    });
  });

  /** The bodies of these ids, without what follows their JSON. */
  const bodies = async (ids) => {
    if (ids.length === 0) return [];
    const found = await redis.mget(ids.map((id) => `${REDIS_KEY_PREFIX}ev:${id}`));
    return found.filter((body) => body !== null).map((body) => body.slice(0, body.indexOf('\0')));
  };

  app.get('/events/processed', async (request, response) => {
    const { limit, order, userId } = request.query;
    const index = userId ? `${REDIS_KEY_PREFIX}ux:${userId}` : `${REDIS_KEY_PREFIX}ix`;
    const page = async (start, count) =>
      order === 'desc' ? redis.zrevrange(index, start, start + count - 1) : redis.zrange(index, start, start + count - 1);
    response.type('json');
    if (limit) return response.send(`[${(await bodies(await page(0, Number(limit)))).join(',')}]`);
    response.write('[');
    const step = 1000;
    for (let start = 0; ; start += step) {
      const rows = await bodies(await page(start, step));
      if (rows.length === 0) break;
      const text = (start > 0 ? ',' : '') + rows.join(',');
      if (!response.write(text)) await new Promise((resolve) => response.once('drain', resolve));
    }
    return response.end(']');
  });

  app.get('/events/:id', async (request, response) => {
    const [body] = await bodies([request.params.id]);
    return body ? response.type('json').send(body) : response.status(404).json({ success: false });
  });

  const server = app.listen(Number(PORT), '127.0.0.1');
  server.keepAliveTimeout = 75_000;
  const stop = async () => {
    server.close();
    await producer.disconnect();
    process.exit(0);
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
}

if (cluster.isPrimary && Number(PROCESSES) > 1) {
  for (let n = 0; n < Number(PROCESSES); n += 1) cluster.fork();
} else {
  await serve();
}
