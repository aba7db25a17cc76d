// plainjob: two processes, each with a worker at its defaults, as its README has it. What is asked
// and what is noted: see trial.py.

import Database from "better-sqlite3";
import { fork } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { better, defineQueue, defineWorker } from "plainjob";

const folder = process.env.PEER_FOLDER;
const gate = path.join(folder, "open");
const notes = fs.openSync(path.join(folder, "notes"), "a+");
const noteSize = 16;
const warmUp = 100;
const firstWake = 1_000_000_000;

// Silent: by default it prints several lines for each job, which nobody here reads.
const logger = { debug() {}, info() {}, warn() {}, error: console.error };
const connection = better(new Database(path.join(folder, "jobs.db")));
const queue = defineQueue({ connection, logger });

async function run(n) {
  const note = Buffer.alloc(noteSize);
  note.writeBigInt64LE(BigInt(n), 0);
  note.writeBigInt64LE(process.hrtime.bigint(), 8);
  fs.writeSync(notes, note);
  while (n < 0 && !fs.existsSync(gate)) await sleep(1);
}

function enqueue(n) {
  queue.add("job", n);
}

function enqueueBacklog(jobs, seconds, gates) {
  for (let n = 0; n < warmUp; n++) enqueue(0);
  for (let n = 0; n < gates; n++) enqueue(-1);
  const began = performance.now();
  let n = 0;
  while (n < jobs && (n < 1000 || performance.now() - began < seconds * 1000)) enqueue(++n);
  console.log(n, (performance.now() - began) / 1000);
}

async function wake(samples, seconds) {
  const end = performance.now() + seconds * 1000;
  const note = Buffer.alloc(noteSize);
  let place = fs.fstatSync(notes).size;
  for (let n = firstWake; n < firstWake + samples && performance.now() < end; n++) {
    await sleep(30 + Math.random() * 100);
    const began = process.hrtime.bigint();
    enqueue(n);
    for (let noted = 0; noted !== n; ) {
      if (fs.readSync(notes, note, 0, noteSize, place) < noteSize) {
        await sleep(1);
        continue;
      }
      place += noteSize;
      noted = Number(note.readBigInt64LE(0));
    }
    console.log(Number(note.readBigInt64LE(8) - began) / 1e6);
  }
}

function consume() {
  const worker = defineWorker("job", (job) => run(JSON.parse(job.data)), { queue, logger });
  process.on("disconnect", () => process.exit());
  return worker.start();
}

const [command, ...numbers] = process.argv.slice(2);
if (command === "work") {
  for (let n = 0; n < 2; n++) fork(process.argv[1], ["consume"]);
} else if (command === "consume") {
  await consume();
} else {
  await (command === "wake" ? wake : enqueueBacklog)(...numbers.map(Number));
  queue.close();
}
