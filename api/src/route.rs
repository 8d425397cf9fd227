//! The table of routes. What a request is for is found once, from its path and method; who may call it, how it is limited,
//! counted, traced and cached, and what answers it are all read off that one value, so that they can't disagree.

use hyper::Method;

use crate::keys::Scope;

/// What answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Takes one event.
    Generate,
    /// Takes many events.
    Batch,
    /// The list of processed events.
    List,
    /// What is processed now, as server-sent events.
    Stream,
    /// One event.
    Event,
    /// A page of the list in an envelope.
    Activities,
    /// How far behind the workers are.
    Lag,
    /// Changes what is logged.
    LogLevel,
    /// How the whole system is.
    Health,
    /// Whether the process lives.
    Live,
    /// Whether posts can succeed.
    Ready,
    /// What is counted.
    Metrics,
    /// A file that is part of the program.
    Page,
    /// 404.
    NotFound,
    /// 405, with the methods that the path has.
    MethodNotAllowed(&'static str),
}

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Clients post and read events.
    Data,
    /// Whoever watches over the process asks all the time and must not be turned away.
    Watch,
    /// For people.
    Page,
}

/// A path: its pattern, whose segments in braces stand for any, its methods as `Allow` lists them, and what answers them.
struct Row {
    pattern: &'static str,
    kind: Kind,
    methods: &'static str,
    get: Option<Action>,
    post: Option<Action>,
    put: Option<Action>,
}

/// What is read, also without the body (RFC 9110, section 9.3.2).
const READ: &str = "GET, HEAD";

impl Row {
    const fn new(pattern: &'static str, kind: Kind, methods: &'static str) -> Self {
        Self { pattern, kind, methods, get: None, post: None, put: None }
    }

    const fn get(pattern: &'static str, kind: Kind, action: Action) -> Self {
        Self { get: Some(action), ..Self::new(pattern, kind, READ) }
    }

    const fn post(pattern: &'static str, action: Action) -> Self {
        Self { post: Some(action), ..Self::new(pattern, Kind::Data, "POST") }
    }

    fn action(&self, method: &Method) -> Action {
        let action = match *method {
            Method::GET => self.get,
            Method::HEAD => self.get.filter(|_| self.methods.contains("HEAD")),
            Method::POST => self.post,
            Method::PUT => self.put,
            _ => None,
        };
        action.unwrap_or(Action::MethodNotAllowed(self.methods))
    }

    fn fits(&self, path: &str) -> bool {
        if !self.pattern.contains('{') {
            return self.pattern == path;
        }
        let mut parts = path.split('/');
        let mut part_fits = |wanted: &str| {
            parts.next().is_some_and(|part| part == wanted || (wanted.starts_with('{') && !part.is_empty()))
        };
        let fitting = self.pattern.split('/').all(&mut part_fits);
        fitting && parts.next().is_none()
    }
}

/// The first row that fits is meant: a path that has a resource of its own is not an eventId.
const TABLE: [Row; 21] = [
    Row::post("/events/generate", Action::Generate),
    Row::post("/events/batch", Action::Batch),
    Row::get("/events/processed", Kind::Data, Action::List),
    // There is no head of a stream that would tell anything about it.
    Row { get: Some(Action::Stream), ..Row::new("/events/stream", Kind::Data, "GET") },
    Row::get("/events/{eventId}", Kind::Data, Action::Event),
    Row {
        get: Some(Action::Activities),
        post: Some(Action::Generate),
        ..Row::new("/api/activities", Kind::Data, "GET, HEAD, POST")
    },
    Row::get("/lag", Kind::Data, Action::Lag),
    Row { put: Some(Action::LogLevel), ..Row::new("/log-level", Kind::Data, "PUT") },
    Row::get("/health", Kind::Watch, Action::Health),
    Row::get("/livez", Kind::Watch, Action::Live),
    Row::get("/readyz", Kind::Watch, Action::Ready),
    Row::get("/metrics", Kind::Watch, Action::Metrics),
    Row::get("/", Kind::Page, Action::Page),
    Row::get("/assets/dashboard.css", Kind::Page, Action::Page),
    Row::get("/assets/dashboard.js", Kind::Page, Action::Page),
    Row::get("/openapi.json", Kind::Page, Action::Page),
    Row::get("/docs", Kind::Page, Action::Page),
    Row::get("/docs/problems", Kind::Page, Action::Page),
    Row::get("/assets/swagger-start.js", Kind::Page, Action::Page),
    Row::get("/assets/swagger-ui.css", Kind::Page, Action::Page),
    Row::get("/assets/swagger-ui-bundle.js", Kind::Page, Action::Page),
];

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    row: usize,
    action: Action,
}

impl Route {
    /// How many values [`Self::index`] has.
    pub(crate) const COUNT: usize = TABLE.len() + 1;

    /// Finds it. A slash at the end of a path changes nothing.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Self {
        let path = path.strip_suffix('/').filter(|rest| !rest.is_empty() && !rest.ends_with('/')).unwrap_or(path);
        let found = TABLE.iter().enumerate().find(|(_, row)| row.fits(path));
        match found {
            Some((index, row)) => Self { row: index, action: row.action(method) },
            None => Self { row: TABLE.len(), action: Action::NotFound },
        }
    }

    pub(crate) fn action(self) -> Action {
        self.action
    }

    /// The number of its path; that of all paths that there are not is the last.
    pub(crate) fn index(self) -> usize {
        self.row
    }

    /// The pattern of the path with this number, for metrics; everything that is in no list is one, since a client must
    /// not be able to make series.
    pub(crate) fn label(index: usize) -> &'static str {
        TABLE.get(index).map_or("other", |row| row.pattern)
    }

    /// The pattern of its path, if there is such a path.
    pub(crate) fn pattern(self) -> Option<&'static str> {
        TABLE.get(self.row).map(|row| row.pattern)
    }

    fn is(self, kind: Kind) -> bool {
        TABLE.get(self.row).is_some_and(|row| row.kind == kind)
    }

    /// What a key must be allowed to; `None` where everybody may call. A path that there is not needs the most.
    pub(crate) fn scope(self) -> Option<Scope> {
        match self.action {
            Action::Health | Action::Live | Action::Ready | Action::Metrics | Action::Page => None,
            // It does nothing, and a key would not help.
            Action::MethodNotAllowed(_) => None,
            Action::List | Action::Stream | Action::Event | Action::Activities | Action::Lag => Some(Scope::Read),
            Action::Generate | Action::Batch => Some(Scope::Write),
            Action::LogLevel | Action::NotFound => Some(Scope::Admin),
        }
    }

    /// Whether it is for whoever watches over the process: never limited, and answered when the connections are used up.
    pub(crate) fn is_watch(self) -> bool {
        self.is(Kind::Watch)
    }

    /// Whether its requests have spans.
    pub(crate) fn is_traced(self) -> bool {
        self.is(Kind::Data)
    }

    /// Whether caches may keep its replies, as these say themselves. Everything else is private and of this moment.
    pub(crate) fn is_cacheable(self) -> bool {
        self.action == Action::Page
    }

    /// Whether its replies are to be compressed. What answers a post repeats what the client has just sent; pages are
    /// compressed already.
    pub(crate) fn is_compressible(self) -> bool {
        !matches!(self.action, Action::Generate | Action::Batch | Action::LogLevel | Action::Page)
    }

    /// The methods that pages of other origins may use here (CORS), if they may.
    pub(crate) fn methods_for_pages(self) -> Option<&'static str> {
        TABLE.get(self.row).filter(|row| row.put.is_none()).map(|row| row.methods)
    }

    /// All paths and their methods.
    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
        TABLE.iter().map(|row| (row.pattern, row.methods))
    }

    /// The paths of the files that are part of the program.
    #[cfg(test)]
    pub(crate) fn pages() -> impl Iterator<Item = &'static str> {
        TABLE.iter().filter(|row| row.kind == Kind::Page).map(|row| row.pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: &str, path: &str) -> Route {
        Route::of(&method.parse().unwrap(), path)
    }

    #[test]
    fn a_path_and_a_method_have_one_action() {
        for (method, path, action) in [
            ("POST", "/events/generate", Action::Generate),
            ("POST", "/api/activities", Action::Generate),
            ("HEAD", "/api/activities", Action::Activities),
            ("POST", "/events/batch", Action::Batch),
            ("GET", "/events/0197", Action::Event),
            ("GET", "/events/processed", Action::List),
            ("HEAD", "/events/stream", Action::MethodNotAllowed("GET")),
            ("GET", "/events/generate", Action::MethodNotAllowed("POST")),
            ("DELETE", "/api/activities", Action::MethodNotAllowed("GET, HEAD, POST")),
            ("PUT", "/log-level", Action::LogLevel),
            ("GET", "/", Action::Page),
        ] {
            assert_eq!(route(method, path).action(), action, "{method} {path}");
        }
        for path in ["/events", "//", "/events/", "/events/a/b", "/healthz", "//health/x", "/health//", "/assets/x"] {
            assert_eq!(route("GET", path).action(), Action::NotFound, "{path}");
        }
        assert_eq!(route("GET", "/events/0197").pattern(), Some("/events/{eventId}"));
        assert_eq!(Route::label(route("GET", "/nothing").index()), "other");
    }

    #[test]
    fn a_slash_at_the_end_changes_nothing() {
        for (path, _) in Route::all().filter(|(path, _)| *path != "/") {
            let path = path.replace("{eventId}", "0197");
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
                let (plain, slash) = (route(method, &path), route(method, &format!("{path}/")));
                assert_eq!((plain, plain.scope()), (slash, slash.scope()), "{method} {path}");
            }
        }
    }

    #[test]
    fn a_path_that_there_is_not_needs_the_most() {
        for (method, path) in [("GET", "/new"), ("GET", "//health"), ("POST", "/events"), ("PUT", "/log-level")] {
            assert_eq!(route(method, path).scope(), Some(Scope::Admin), "{method} {path}");
        }
    }
}
