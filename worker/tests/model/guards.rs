//! The guards of the rule, each of which the model can break to show what it is for.

/// A guard that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    StartFromCommit,
    MissingHasNoSay,
    NoCompare,
    WriteAnyway,
    PlaceAnyway,
    PositionsAhead,
    IgnoreMismatch,
    NoHeartbeatCheck,
    LateAnswersCount,
    AnyOrder,
    NoBarrier,
    /// Not needed.
    CommitEarly,
    /// Not needed.
    PositionsAlone,
}

impl Guard {
    /// Those without which an event is lost, or an earlier one loses its place to a later one.
    pub(crate) const NEEDED: [Self; 11] = [
        Self::StartFromCommit,
        Self::MissingHasNoSay,
        Self::NoCompare,
        Self::WriteAnyway,
        Self::PlaceAnyway,
        Self::PositionsAhead,
        Self::IgnoreMismatch,
        Self::NoHeartbeatCheck,
        Self::LateAnswersCount,
        Self::AnyOrder,
        Self::NoBarrier,
    ];

    /// Those of which one would think so.
    pub(crate) const NOT_NEEDED: [Self; 2] = [Self::CommitEarly, Self::PositionsAlone];

    /// Its name, that of the mutation where there is one, and what is done without it.
    pub(crate) fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::StartFromCommit => {
                ("start-from-commit", "A partition starts at the group's commit, whatever Redis holds.")
            }
            Self::MissingHasNoSay => {
                ("missing-has-no-say", "A bucket without a position has no say in where a partition starts.")
            }
            Self::NoCompare => ("no-compare", "A position moves, wherever it stands."),
            Self::WriteAnyway => (
                "write-anyway",
                "The records of a batch are written, wherever the position stands. If one of them repeats the eventId of an \
                 earlier record that is not stored, it takes its place for good.",
            ),
            Self::PlaceAnyway => (
                "place-anyway",
                "The start of a partition is written to every bucket, also where the position is lower by now.",
            ),
            Self::PositionsAhead => ("positions-ahead", "A position moves before its records are written."),
            Self::IgnoreMismatch => (
                "ignore-mismatch",
                "A position that was not where the worker left it is taken for moved, also by the heartbeat.",
            ),
            Self::NoHeartbeatCheck => ("no-heartbeat-check", "Nobody looks whether Redis still holds its positions."),
            Self::LateAnswersCount => {
                ("late-answers-count", "The answer to a batch from before a displacement still counts.")
            }
            Self::AnyOrder => ("any-order", "Answers count as they come, not in the order of the batches."),
            Self::NoBarrier => (
                "no-barrier",
                "The client goes on handing out what it had fetched before the partition was placed anew. It does not: \
                 librdkafka drops what is older than a seek.",
            ),
            Self::CommitEarly => ("commit-early", "A batch is committed when it is sent."),
            Self::PositionsAlone => ("positions-alone", "The commit has no say in where a partition starts."),
        }
    }
}
