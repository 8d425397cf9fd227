// The worker with KafkaJS and ioredis: batches of a partition go to Redis as pipelines, six partitions at a time.
import { Redis } from 'ioredis';
import { Kafka, logLevel } from 'kafkajs';

const MOST_RECORDS = 500;
const {
  KAFKA_BROKERS, KAFKA_TOPIC, KAFKA_CONSUMER_GROUP, REDIS_URL,
  REDIS_KEY_PREFIX = 'ua:', USER_INDEX = 'on', RETENTION_MS = '604800000',
} = process.env;
const retention = Number(RETENTION_MS);
const worker = `kafkajs-${process.pid}`;

const kafka = new Kafka({ clientId: worker, brokers: [KAFKA_BROKERS], logLevel: logLevel.ERROR });
const consumer = kafka.consumer({ groupId: KAFKA_CONSUMER_GROUP, sessionTimeout: 10_000, maxWaitTimeInMs: 100 });
const redis = new Redis(REDIS_URL);

/** Records the messages of one partition with one pipeline; rejects when any command failed. */
async function store(messages, partition) {
  const pipeline = redis.pipeline();
  const index = [];
  for (const { value, offset } of messages) {
    const { eventId, userId, timestamp } = JSON.parse(value);
    const score = Date.parse(timestamp);
    const body = `${value}\0${Date.now()} ${partition} ${offset} ${worker}`;
    pipeline.set(`${REDIS_KEY_PREFIX}ev:${eventId}`, body, 'PXAT', score + retention, 'NX');
    index.push(score, eventId);
    if (USER_INDEX === 'on') {
      pipeline.zadd(`${REDIS_KEY_PREFIX}ux:${userId}`, 'NX', score, eventId);
      pipeline.pexpire(`${REDIS_KEY_PREFIX}ux:${userId}`, retention);
    }
  }
  pipeline.zadd(`${REDIS_KEY_PREFIX}ix`, 'NX', ...index);
  const failed = (await pipeline.exec()).find(([error]) => error);
  if (failed) throw failed[0];
}

await consumer.connect();
await consumer.subscribe({ topic: KAFKA_TOPIC, fromBeginning: true });
await consumer.run({
  eachBatchAutoResolve: false,
  partitionsConsumedConcurrently: 6,
  eachBatch: async ({ batch, resolveOffset, heartbeat, isRunning, isStale }) => {
    for (let start = 0; start < batch.messages.length && isRunning() && !isStale(); start += MOST_RECORDS) {
      const part = batch.messages.slice(start, start + MOST_RECORDS);
      await store(part, batch.partition);
      resolveOffset(part.at(-1).offset);
      await heartbeat();
    }
  },
});

const stop = async () => {
  await consumer.disconnect();
  process.exit(0);
};
process.on('SIGTERM', stop);
process.on('SIGINT', stop);
