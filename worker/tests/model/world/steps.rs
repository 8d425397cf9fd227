//! What happens, one action at a time.

use worker::commit::{Ledger, NextOffset, Offset, Ticket, Vacancy, Verdict, has_fallen};
use worker::placement::{Log, decide};

use super::{Batch, PARTITION, Part, Parts, Placing, Worker, World, is_answered};
use crate::actions::{Action, Which};
use crate::guards::Guard;
use crate::redis::{BUCKETS, Command, Records};

impl World {
    /// Everything that could happen next; [`World::act`] says whether it can.
    pub(crate) fn actions(&self, actions: &mut Vec<Action>) {
        let arrivals: &[Which] = if self.whole { &[Which::Both] } else { &[Which::One(0), Which::One(1)] };
        for which in arrivals {
            actions.extend((0..self.late.len()).map(|nth| Action::Late(nth, *which)));
            let of = |worker| [Action::Apply(worker, *which), Action::ApplyPlacing(worker, *which)];
            actions.extend([0, 1].into_iter().flat_map(of));
        }
        for worker in 0..2 {
            self.actions_of(worker, actions);
        }
        if self.saved.is_some() {
            actions.extend(Which::ALL.map(Action::Rollback));
        }
        if self.faults > 0 {
            self.faults_of_all(actions);
        }
    }

    fn actions_of(&self, worker: usize, actions: &mut Vec<Action>) {
        actions.extend([Action::Answer(worker), Action::Notice(worker)]);
        actions.extend([Action::Heartbeat(worker), Action::Look(worker), Action::Settle(worker)]);
        actions.extend((1..=self.end()).map(|records| Action::Send(worker, records)));
    }

    /// Does it. Says whether it could.
    pub(crate) fn act(&mut self, action: Action, broken: Option<Guard>) -> bool {
        match action {
            Action::Late(nth, which) => which.any(|bucket| self.arrive_late(nth, bucket, broken)) && self.forget_late(),
            Action::Apply(worker, which) => which.any(|bucket| self.apply(worker, bucket, broken)),
            Action::ApplyPlacing(worker, which) => which.any(|bucket| self.apply_placing(worker, bucket, broken)),
            Action::Answer(worker) => self.answer(worker, broken),
            Action::Notice(worker) => worker != self.owner && self.revoke(worker),
            Action::Heartbeat(worker) => broken != Some(Guard::NoHeartbeatCheck) && self.beat(worker, broken),
            Action::Look(worker) => worker == self.owner && self.look(worker, broken),
            Action::Send(worker, records) => worker == self.owner && self.send(worker, records, broken),
            Action::Settle(worker) => worker == self.owner && self.settle(worker),
            Action::Rollback(which) => self.saved.take().is_some_and(|saved| self.lose(which, saved)),
            Action::Fault(fault) => self.fail(fault, broken),
        }
    }

    pub(super) fn execute(&mut self, bucket: usize, command: Command, broken: Option<Guard>) -> bool {
        let held = self.redis[bucket].apply(command, broken);
        self.ever = self.ever.with(self.redis[bucket].stored);
        held
    }

    /// No more faults. What is late arrives now, or never.
    pub(crate) fn calm(&mut self, late: bool, broken: Option<Guard>) {
        (self.faults, self.commit_is_lost) = (0, false);
        while late && self.act(Action::Late(0, Which::Both), broken) {}
        self.late.clear();
    }

    fn arrive_late(&mut self, nth: usize, bucket: usize, broken: Option<Guard>) -> bool {
        let part = self.late.get_mut(nth).map(|parts| std::mem::replace(&mut parts[bucket], Part::Nothing));
        let Some(Part::Sent(command)) = part else { return false };
        self.execute(bucket, command, broken);
        true
    }

    /// In any order, since they arrive in any.
    fn forget_late(&mut self) -> bool {
        self.late.retain(|parts| parts.iter().any(|part| *part != Part::Nothing));
        self.late.sort_unstable();
        true
    }

    /// The oldest part of a worker's batches that is on its way to a bucket: they arrive in the order they were sent.
    pub(super) fn oldest(&mut self, worker: usize, bucket: usize) -> Option<(&mut Part, Command)> {
        self.workers[worker].in_flight.iter_mut().find_map(|batch| match &mut batch.parts[bucket] {
            part @ Part::Sent(_) => {
                let Part::Sent(command) = *part else { return None };
                Some((part, command))
            }
            _ => None,
        })
    }

    pub(super) fn apply(&mut self, worker: usize, bucket: usize, broken: Option<Guard>) -> bool {
        let Some((_, command)) = self.oldest(worker, bucket) else { return false };
        let (command, rest) = match (broken, command) {
            (Some(Guard::PositionsAhead), Command::Write { records, step: step @ Some(_) }) if !records.is_empty() => (
                Command::Write { records: Records::default(), step },
                Some(Part::Sent(Command::Write { records, step: None })),
            ),
            _ => (command, None),
        };
        let held = self.execute(bucket, command, broken);
        let answer = if held { Part::Held } else { Part::Mismatch };
        if let Some((part, _)) = self.oldest(worker, bucket) {
            *part = rest.filter(|_| held).unwrap_or(answer);
        }
        self.acknowledge(worker, broken);
        true
    }

    pub(super) fn apply_placing(&mut self, worker: usize, bucket: usize, broken: Option<Guard>) -> bool {
        // A connection keeps the order of what is sent; one that was lost is among the faults.
        let overtakes = self.oldest(worker, bucket).is_some();
        let placing = self.workers[worker].placing.as_ref().filter(|_| !overtakes);
        let part = placing.map(|placing| placing.parts[bucket]);
        let Some(Part::Sent(command)) = part else { return false };
        let held = self.execute(bucket, command, broken);
        if let Some(placing) = &mut self.workers[worker].placing {
            placing.parts[bucket] = if held { Part::Held } else { Part::Mismatch };
        }
        self.placed(worker, broken);
        true
    }

    /// As the worker's `on_written`. An answer that all is well changes nothing but its worker, so that it may come at
    /// once; one that is lost is a refusal.
    pub(super) fn acknowledge(&mut self, worker: usize, broken: Option<Guard>) {
        while let Some(nth) = self.next_answer(worker, broken) {
            if self.has_failed(worker, nth, broken) {
                return;
            }
            let Worker { ledger, in_flight, .. } = &mut self.workers[worker];
            let Batch { ticket, parts } = in_flight.remove(nth);
            ledger.acknowledge(&ticket);
            if broken == Some(Guard::LateAnswersCount) {
                count_for_the_present_life(ledger, &ticket, &parts);
            }
            self.give_up(parts);
            self.commit(worker);
        }
    }

    fn next_answer(&self, worker: usize, broken: Option<Guard>) -> Option<usize> {
        let is_answered = |batch: &Batch| is_answered(&batch.parts);
        let in_flight = &self.workers[worker].in_flight;
        match broken {
            Some(Guard::AnyOrder) => in_flight.iter().position(is_answered),
            _ => in_flight.first().is_some_and(is_answered).then_some(0),
        }
    }

    fn has_failed(&self, worker: usize, nth: usize, broken: Option<Guard>) -> bool {
        let Batch { ticket, parts } = &self.workers[worker].in_flight[nth];
        let mismatch = parts.contains(&Part::Mismatch) && broken != Some(Guard::IgnoreMismatch);
        (mismatch || parts.contains(&Part::Refused)) && self.workers[worker].is_present(ticket)
    }

    fn answer(&mut self, worker: usize, broken: Option<Guard>) -> bool {
        let Some(nth) = self.next_answer(worker, broken) else { return false };
        let Batch { ticket, parts } = self.workers[worker].in_flight.remove(nth);
        self.give_up(parts);
        ticket.slots().for_each(|slot| self.workers[worker].displace(slot, broken));
        self.acknowledge(worker, broken);
        true
    }

    /// The answer to a placement changes nothing but its worker, so that it may come at once.
    fn placed(&mut self, worker: usize, broken: Option<Guard>) {
        let worker = &mut self.workers[worker];
        let answered = worker.placing.take_if(|placing| is_answered(&placing.parts));
        let Some(Placing { slot, start, committed, parts, .. }) = answered else { return };
        let written = parts.iter().all(|part| *part == Part::Held);
        if written && worker.ledger.place(slot, start, committed.map(NextOffset), BUCKETS) {
            let fetched = if broken == Some(Guard::NoBarrier) { worker.next } else { start.0 };
            worker.next = fetched.max(start.0);
        }
    }

    pub(super) fn revoke(&mut self, worker: usize) -> bool {
        let Worker { ledger, next, .. } = &mut self.workers[worker];
        let assigned = ledger.current(PARTITION).is_some();
        ledger.revoke(PARTITION);
        *next = 0;
        assigned
    }

    /// As the worker's heartbeat.
    fn beat(&mut self, worker: usize, broken: Option<Guard>) -> bool {
        let positions = self.redis.map(|bucket| bucket.position);
        let acknowledged = self.workers[worker].ledger.acknowledged();
        let fallen = acknowledged.into_iter().find(|(_, acked)| has_fallen(acked, &positions));
        let fallen = fallen.filter(|_| broken != Some(Guard::IgnoreMismatch));
        fallen.iter().for_each(|(slot, _)| self.workers[worker].displace(*slot, broken));
        // What was lost of the commits is made up for.
        let committed = self.committed;
        self.workers[worker].ledger.doubt_commits();
        self.commit(worker);
        fallen.is_some() || committed != self.committed
    }

    /// As the worker's `place`, up to the point where the commands are on their way.
    pub(super) fn look(&mut self, worker: usize, broken: Option<Guard>) -> bool {
        let mut log = Log { low: 0, high: self.end(), committed: self.committed };
        let mut positions = self.redis.map(|bucket| bucket.position);
        let worker = &mut self.workers[worker];
        let vacancy = worker.ledger.unplaced().first().copied();
        let (Some(Vacancy { slot, ceiling }), None) = (vacancy, &worker.placing) else { return false };
        match broken {
            Some(Guard::StartFromCommit) => positions = [self.committed; BUCKETS],
            Some(Guard::MissingHasNoSay) => {
                let known = positions.iter().copied().flatten().min();
                positions = positions.map(|position| position.or(known).or(self.committed));
            }
            Some(Guard::PositionsAlone) => log.committed = positions.into_iter().min().flatten(),
            _ => {}
        }
        let start = decide(log, &positions, ceiling);
        // The mutation of the worker writes its start wherever the positions stand.
        let beginning = start.beginning || broken == Some(Guard::StartFromCommit);
        let place = Part::Sent(Command::Place { start: start.at.0, beginning });
        let parts = [place; BUCKETS];
        worker.placing = Some(Placing { slot, start: start.at, beginning, committed: self.committed, parts });
        true
    }

    /// Reads records and sends them as a batch. What was read and not sent is forgotten with the life, or is stored
    /// without a position, which is never wrong: nothing to check.
    pub(super) fn send(&mut self, worker: usize, records: i64, broken: Option<Guard>) -> bool {
        let sent = self.workers[worker].next + records;
        // A batch ends with a record.
        if sent > self.end() || Records::only(sent - 1).within(self.records()).is_empty() {
            return false;
        }
        let all = Records::before(sent).without(Records::before(sent - records)).within(self.records());
        let of: [Records; BUCKETS] = std::array::from_fn(|bucket| all.within(self.of(bucket)));
        let Worker { ledger, next, in_flight, .. } = &mut self.workers[worker];
        let waits = ledger.current(PARTITION).is_none() || !ledger.unplaced().is_empty();
        if waits || in_flight.len() == self.most_in_flight {
            return false;
        }
        let delivered = (*next..sent).filter(|offset| !Records::only(*offset).within(all).is_empty());
        let verdicts: Vec<_> = delivered.map(|offset| ledger.deliver(PARTITION, Offset(offset))).collect();
        if verdicts.contains(&Verdict::Displaced) {
            (*next, self.doubted) = (0, true);
            return true;
        }
        let Some(Verdict::Accepted { slot, .. }) = verdicts.last().copied() else { return false };
        *next = sent;
        let (ticket, moves) =
            ledger.dispatch([(slot, NextOffset(sent))], of.iter().map(|records| !records.is_empty()).collect());
        let step = |bucket: usize| moves[bucket].first().map(|step| (step.from, step.to));
        let parts = std::array::from_fn(|bucket| part(of[bucket], step(bucket)));
        in_flight.push(Batch { ticket, parts });
        if broken == Some(Guard::CommitEarly) {
            self.committed = Some(sent);
        }
        true
    }

    fn settle(&mut self, worker: usize) -> bool {
        let Worker { ledger, in_flight, .. } = &mut self.workers[worker];
        if in_flight.len() == self.most_in_flight {
            return false;
        }
        let Some((ticket, moves)) = ledger.settle() else { return false };
        let step = |bucket: usize| moves[bucket].first().map(|step| (step.from, step.to));
        let parts = std::array::from_fn(|bucket| part(Records::default(), step(bucket)));
        in_flight.push(Batch { ticket, parts });
        true
    }

    /// The brokers take commits of the owner only. The sooner, the more could be skipped because of them.
    fn commit(&mut self, worker: usize) {
        if worker != self.owner {
            return;
        }
        for (_, next) in self.workers[worker].ledger.take_commits() {
            if !std::mem::take(&mut self.commit_is_lost) {
                self.committed = Some(next.0);
            }
        }
    }

    /// What nobody waits for any more may still arrive.
    pub(super) fn give_up(&mut self, parts: Parts) {
        self.late.push(parts.map(|part| if let Part::Sent(_) = part { part } else { Part::Nothing }));
        self.forget_late();
    }
}

fn part(records: Records, step: Option<(i64, i64)>) -> Part {
    if records.is_empty() && step.is_none() { Part::Nothing } else { Part::Sent(Command::Write { records, step }) }
}

/// What an answer would do without epochs.
fn count_for_the_present_life(ledger: &mut Ledger, ticket: &Ticket, parts: &Parts) {
    let Some(present) = ledger.current(PARTITION) else { return };
    let late = ticket.slots().any(|slot| slot != present);
    if let (true, Some((_, end))) = (late, ticket.ends().last()) {
        let touched = parts.iter().map(|part| *part != Part::Nothing).collect();
        let (again, _) = ledger.dispatch([(present, end)], touched);
        ledger.acknowledge(&again);
    }
}
