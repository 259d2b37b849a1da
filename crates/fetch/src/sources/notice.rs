//! What the user of a bad link should see while nothing else moves.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::transport::TransportError;

/// Something worth a line.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// A source failed; it is asked again after a pause.
    Waiting {
        /// The source.
        source: &'a str,
        /// Why.
        error: &'a TransportError,
        /// For how long.
        pause: Duration,
        /// How often it failed by now with nothing gained in between, and may.
        attempt: (u32, u32),
    },
    /// A source is left; the next one is asked for the rest.
    Leaving {
        /// The source.
        source: &'a str,
        /// Why.
        error: &'a TransportError,
        /// The next one.
        next: &'a str,
    },
    /// The link has become metered: it is left alone for a while.
    Metered {
        /// For how long at most.
        pause: Duration,
    },
    /// Workers have fewer walls around them than there could be.
    Kernel {
        /// What this kernel does not have.
        lacks: &'a [String],
    },
}

impl fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { source, error, pause, attempt: (attempt, attempts) } => write!(
                f,
                "{source}: {error}; waiting {} s, then again ({attempt} of {attempts})",
                pause.as_secs_f64().round()
            ),
            Self::Leaving { source, error, next } => {
                write!(f, "{source}: {error}; going on with {next}")
            }
            Self::Metered { pause } => write!(
                f,
                "the network is a metered one now; waiting for another for up to {} s",
                pause.as_secs_f64().round()
            ),
            Self::Kernel { lacks } => write!(
                f,
                "this kernel has no {}: servers are asked, and what comes is decoded, with less protection",
                lacks.join(", no ")
            ),
        }
    }
}

impl Notice<'_> {
    /// Whether it is worth a line to a person: a pause that is over before it is read is
    /// not.
    pub fn is_news(&self) -> bool {
        match self {
            Self::Waiting { pause, .. } => *pause >= Duration::from_secs(1),
            Self::Leaving { .. } | Self::Metered { .. } => true,
            // It is so every time, and nothing comes of it by itself.
            Self::Kernel { .. } => false,
        }
    }
}

/// Hears notices, in the thread that fetches.
#[derive(Clone)]
pub struct Listener(Arc<dyn Fn(&Notice<'_>) + Send + Sync>);

impl Listener {
    /// Has `hear` called with each notice.
    pub fn new(hear: impl Fn(&Notice<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    pub(super) fn hear(&self, notice: &Notice<'_>) {
        (self.0)(notice);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_say_what_is_going_on() {
        let error = &TransportError::Cut { at: 10, expected: 20 };
        let source = "http://a.example";
        let pause = Duration::from_millis(8_200);
        let waiting = Notice::Waiting { source, error, pause, attempt: (5, 6) };
        assert_eq!(
            waiting.to_string(),
            "http://a.example: the connection was cut at byte 10 of 20; \
             waiting 8 s, then again (5 of 6)"
        );
        let leaving = Notice::Leaving { source, error: &TransportError::Missing, next: "/stick" };
        assert_eq!(
            leaving.to_string(),
            "http://a.example: there is no such file; going on with /stick"
        );
        let short =
            Notice::Waiting { source, error, pause: Duration::from_millis(600), attempt: (1, 6) };
        assert!(waiting.is_news() && leaving.is_news() && !short.is_news());
    }
}
