//! What goes wrong.

use super::{Batch, PARTITION, Part, Worker, World};
use crate::actions::{Action, Fault, Which};
use crate::guards::Guard;
use crate::redis::{BUCKETS, Bucket, Records};

impl World {
    pub(super) fn faults_of_all(&self, actions: &mut Vec<Action>) {
        let mut faults =
            vec![Fault::Revoke, Fault::ZombieSends, Fault::ZombieLooks, Fault::LoseCommit, Fault::Save, Fault::Expire];
        faults.extend(Which::ALL.map(Fault::Flush));
        for worker in 0..2 {
            faults.extend([Fault::Silence(worker), Fault::SilencePlacing(worker)]);
            faults.extend((0..BUCKETS).flat_map(|b| of_bucket(worker, b)));
            faults.extend([0, 1].map(|heir| Fault::Crash { worker, heir }));
        }
        if self.whole {
            faults.extend([0, 1].into_iter().flat_map(|w| (0..BUCKETS).flat_map(move |b| parts_of(w, b))));
        }
        faults.extend(self.clock_jumps.then_some(Fault::ClockJump));
        actions.extend(faults.into_iter().map(Action::Fault));
    }

    pub(super) fn fail(&mut self, fault: Fault, broken: Option<Guard>) -> bool {
        let failed = self.faults > 0
            && match fault {
                Fault::Refuse(worker, bucket) => self.refuse(worker, bucket),
                Fault::LoseAnswer(worker, bucket) => match self.oldest(worker, bucket) {
                    Some((part, command)) => {
                        *part = Part::Refused;
                        self.execute(bucket, command, broken);
                        true
                    }
                    None => false,
                },
                Fault::Silence(worker) => self.silence(worker, broken),
                Fault::SilencePlacing(worker) => self.silence_placing(worker),
                Fault::Resend(worker, bucket) => match self.oldest(worker, bucket) {
                    Some((_, command)) => {
                        self.execute(bucket, command, broken);
                        self.apply(worker, bucket, broken)
                    }
                    None => false,
                },
                Fault::Part(worker, bucket) => self.apply(worker, bucket, broken),
                Fault::PartPlacing(worker, bucket) => self.apply_placing(worker, bucket, broken),
                Fault::LoseCommit => !std::mem::replace(&mut self.commit_is_lost, true),
                Fault::Crash { worker, heir } => self.crash(worker, heir),
                Fault::Revoke => self.assign(1 - self.owner),
                Fault::Save => self.saved.replace(self.redis).is_none(),
                Fault::Flush(which) => self.lose(which, Default::default()),
                Fault::ZombieSends => self.send(1 - self.owner, 1, broken),
                Fault::ZombieLooks => self.look(1 - self.owner, broken),
                Fault::Expire => self.expire(),
                Fault::ClockJump => {
                    self.redis = Default::default();
                    true
                }
            };
        if failed {
            self.faults -= 1;
        }
        if self.faults == 0 {
            // A zombie that sends nothing more may as well know.
            self.revoke(1 - self.owner);
        }
        failed
    }

    fn refuse(&mut self, worker: usize, bucket: usize) -> bool {
        let Some((part, _)) = self.oldest(worker, bucket) else { return false };
        *part = Part::Refused;
        true
    }

    fn silence(&mut self, worker: usize, broken: Option<Guard>) -> bool {
        if self.workers[worker].in_flight.is_empty() {
            return false;
        }
        let Batch { ticket, parts } = self.workers[worker].in_flight.remove(0);
        self.give_up(parts);
        ticket.slots().for_each(|slot| self.workers[worker].displace(slot, broken));
        self.acknowledge(worker, broken);
        true
    }

    fn silence_placing(&mut self, worker: usize) -> bool {
        let Some(placing) = self.workers[worker].placing.take() else { return false };
        self.give_up(placing.parts);
        true
    }

    fn crash(&mut self, worker: usize, heir: usize) -> bool {
        let killed = std::mem::take(&mut self.workers[worker]);
        let alive = killed != Worker::default();
        killed.in_flight.into_iter().for_each(|batch| self.give_up(batch.parts));
        killed.placing.into_iter().for_each(|placing| self.give_up(placing.parts));
        if worker == self.owner {
            return self.assign(heir);
        }
        // A zombie dies, and the partition stays where it is.
        alive && heir == self.owner
    }

    fn assign(&mut self, worker: usize) -> bool {
        self.revoke(worker);
        self.workers[worker].ledger.assign(PARTITION);
        self.owner = worker;
        true
    }

    pub(super) fn lose(&mut self, which: Which, past: [Bucket; BUCKETS]) -> bool {
        let before = self.redis;
        for bucket in which.buckets() {
            self.redis[bucket] = past[bucket];
            self.redis[bucket].stored = self.redis[bucket].stored.without(self.expired);
        }
        before != self.redis
    }

    fn expire(&mut self) -> bool {
        let oldest = Records::only(0);
        let stored = !self.stored().within(oldest).is_empty() && self.expired.is_empty();
        if stored {
            self.expired = oldest;
            self.redis.iter_mut().for_each(|bucket| bucket.stored = bucket.stored.without(oldest));
        }
        stored
    }
}

fn of_bucket(worker: usize, bucket: usize) -> [Fault; 3] {
    [Fault::Refuse(worker, bucket), Fault::LoseAnswer(worker, bucket), Fault::Resend(worker, bucket)]
}

/// What is a fault only where batches arrive whole.
fn parts_of(worker: usize, bucket: usize) -> [Fault; 2] {
    [Fault::Part(worker, bucket), Fault::PartPlacing(worker, bucket)]
}
