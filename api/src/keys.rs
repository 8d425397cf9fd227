//! API keys: who may call what.
//!
//! The file holds a line a key: an id, the SHA-256 of the key in hex, and what it may do. It is read again when it
//! changes, so that a key can be added or taken away without a restart; a file with a mistake changes nothing.
//!
//! A key is random and long (`hash-key` makes such ones), so one fast hash is enough: there is no list of likely keys to
//! try. The hash of what a client sends is compared with every key's, in a time that depends on neither: how long a
//! refusal takes says nothing about how close the guess was.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ring::digest::{Digest, SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::ConstantTimeEq;
use warp::http::HeaderMap;
use warp::http::header::AUTHORIZATION;

use crate::problem::Problem;

/// The caller of a request without a key.
const ANONYMOUS: &str = "anonymous";
/// How often the file is looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Shortest key, in bytes: what is shorter can be tried out.
pub(crate) const SHORTEST_KEY: usize = 16;

/// What a key lets its bearer do; none includes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Post events.
    Write,
    /// Read lists, events and the stream.
    Read,
    /// Whatever else is not open to all.
    Admin,
}

impl Scope {
    const ALL: [(&str, Self); 3] = [("write", Self::Write), ("read", Self::Read), ("admin", Self::Admin)];

    /// Its name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, scope)| *scope == self).map_or("", |(name, _)| name)
    }
}

/// Who sent a request: the id of its key, if it has one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Caller(Option<Arc<str>>);

impl Caller {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.0.as_deref().unwrap_or(ANONYMOUS)
    }
}

#[derive(Clone)]
struct Key {
    caller: Caller,
    hash: [u8; SHA256_OUTPUT_LEN],
    scopes: Vec<Scope>,
}

/// A file of keys, read.
#[derive(Clone)]
pub struct KeyFile {
    path: PathBuf,
    text: String,
    keys: Vec<Key>,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys of {:?}", self.keys.len(), self.path)
    }
}

impl KeyFile {
    /// Reads a file.
    ///
    /// # Errors
    /// Every line that is wrong, or why the file can't be read.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("can't be read: {e}"))?;
        let keys = parse(&text)?;
        Ok(Self { path: path.to_owned(), text, keys })
    }
}

fn parse(text: &str) -> Result<Vec<Key>, String> {
    let (mut keys, mut wrong) = (Vec::<Key>::new(), Vec::new());
    for (number, line) in
        (1..).zip(text.lines()).filter(|(_, line)| !matches!(line.trim().bytes().next(), None | Some(b'#')))
    {
        match parse_line(line) {
            Ok(key) if keys.iter().any(|other| other.caller == key.caller) => {
                wrong.push(format!("line {number}: the id {:?} is there twice", key.caller.id()));
            }
            Ok(key) => match keys.iter().find(|other| other.hash == key.hash) {
                Some(other) => wrong.push(format!("line {number}: the same key as {:?}", other.caller.id())),
                None => keys.push(key),
            },
            // The line itself is not shown: somebody may have written the key where its hash belongs.
            Err(why) => wrong.push(format!("line {number}: {why}")),
        }
    }
    match (wrong.is_empty(), keys.is_empty()) {
        (false, _) => Err(wrong.join("; ")),
        (true, true) => Err("holds no key: nobody could call anything".into()),
        (true, false) => Ok(keys),
    }
}

fn parse_line(line: &str) -> Result<Key, &'static str> {
    let [id, hash, scopes] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        return Err("must be an id, a hash and scopes, separated by blanks");
    };
    if !id_is_good(id) {
        return Err("the id must be 1 to 64 visible ASCII characters, and not anonymous");
    }
    let hash = unhex(hash).ok_or("the hash must be 64 hexadecimal digits, the SHA-256 of the key")?;
    let scopes = parse_scopes(scopes).ok_or("the scopes must be some of write,read,admin")?;
    Ok(Key { caller: Caller(Some(id.into())), hash, scopes })
}

fn id_is_good(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) && id != ANONYMOUS && !id.starts_with('#')
}

fn parse_scopes(list: &str) -> Option<Vec<Scope>> {
    let scope = |name: &str| Scope::ALL.iter().find(|(known, _)| *known == name).map(|(_, scope)| *scope);
    list.split(',').map(scope).collect()
}

fn unhex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let digits = text.bytes().map(|b| u8::try_from(char::from(b).to_digit(16)?).ok()).collect::<Option<Vec<_>>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    bytes.try_into().ok().filter(|_| digits.len() == 2 * SHA256_OUTPUT_LEN)
}

/// The line of a file for this key.
///
/// # Errors
/// What is wrong with one of them.
pub(crate) fn line(id: &str, key: &str, scopes: &str) -> Result<String, String> {
    if key.len() < SHORTEST_KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("a key must be at least {SHORTEST_KEY} visible ASCII characters, without blanks"));
    }
    let hash: String = digest(&SHA256, key.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{id} {hash} {scopes}");
    parse_line(&line).map_err(str::to_owned)?;
    Ok(line)
}

/// The hash of the key that a client has shown, for a reply that goes on for long.
pub(crate) struct Shown(Option<Digest>);

impl Shown {
    pub(crate) fn in_headers(headers: &HeaderMap) -> Self {
        Self(given(headers).map(|key| digest(&SHA256, key)))
    }
}

/// The keys in force.
pub struct Keys {
    file: KeyFile,
    current: RwLock<Arc<[Key]>>,
}

impl Keys {
    /// The keys of a file that was read.
    #[must_use]
    pub fn new(file: KeyFile) -> Self {
        let current = RwLock::new(file.keys.clone().into());
        Self { file, current }
    }

    /// Lets a request through whose key has the scope that is `needed`, and says who sent it.
    ///
    /// # Errors
    /// [`Problem::Unauthorized`] without a key that is known, [`Problem::Forbidden`] when it may not do this.
    pub fn admit(&self, needed: Scope, headers: &HeaderMap) -> Result<Caller, Problem> {
        self.admit_shown(needed, &Shown::in_headers(headers))
    }

    /// The same by a key that was shown before: it may not be in force any more.
    pub(crate) fn admit_shown(&self, needed: Scope, shown: &Shown) -> Result<Caller, Problem> {
        let hash = shown.0.as_ref().ok_or(Problem::Unauthorized { unknown: false })?;
        let key = self.find(hash).ok_or(Problem::Unauthorized { unknown: true })?;
        if key.scopes.contains(&needed) { Ok(key.caller) } else { Err(Problem::Forbidden(needed)) }
    }

    fn find(&self, hash: &Digest) -> Option<Key> {
        let keys = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        // All of them, whether or not one was found.
        keys.iter()
            .fold(None, |found, key| if bool::from(key.hash.ct_eq(hash.as_ref())) { Some(key.clone()) } else { found })
    }

    /// Reads the file this often, and takes it over when its content has changed. What can't be used is logged once and
    /// changes nothing.
    pub async fn follow(self: Arc<Self>, period: Duration) {
        let mut last = Ok(self.file.text.clone());
        loop {
            tokio::time::sleep(period).await;
            let path = self.file.path.clone();
            // A task that is cancelled with the process is no news.
            let Ok(read) = tokio::task::spawn_blocking(move || KeyFile::read(&path)).await else { return };
            let now = read.as_ref().map(|file| file.text.clone()).map_err(Clone::clone);
            if now == last {
                continue;
            }
            match read {
                Ok(file) => {
                    log::info!("API_KEYS_FILE has changed: {} keys", file.keys.len());
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = file.keys.into();
                }
                Err(why) => {
                    log::error!("API_KEYS_FILE has changed and can't be used, the keys from before stay: {why}")
                }
            }
            last = now;
        }
    }
}

/// What the request shows: `Authorization: Bearer …` or `X-Api-Key`.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use warp::http::Method;

    use super::*;
    use crate::route::Route;

    const WRITER: &str = "the-writers-own-key";
    const READER: &str = "the-readers-own-key";

    fn text() -> String {
        let line = |id, key, scopes| line(id, key, scopes).unwrap();
        format!("# who\n\n{}\n{}\n", line("shop", WRITER, "write"), line("desk", READER, "read,admin"))
    }

    fn keys() -> Keys {
        Keys::new(KeyFile { path: "keys".into(), keys: parse(&text()).unwrap(), text: text() })
    }

    fn admit(method: &Method, path: &str, header: Option<(&'static str, &str)>) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().unwrap());
        }
        let needed = Route::of(method, path).scope();
        let admitted = needed.map_or(Ok(Caller::default()), |needed| keys().admit(needed, &headers));
        admitted.map(|caller| caller.id().to_owned()).map_err(|problem| match problem {
            Problem::Unauthorized { unknown: false } => "no key",
            Problem::Unauthorized { unknown: true } => "unknown",
            Problem::Forbidden(scope) => scope.name(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_key_opens_what_its_scopes_name_and_nothing_else() {
        let (writer, reader) = (Some(("x-api-key", WRITER)), Some(("x-api-key", READER)));
        for path in ["/events/generate", "/events/batch", "/api/activities", "/events/generate/"] {
            assert_eq!(admit(&Method::POST, path, writer), Ok("shop".into()), "{path}");
            assert_eq!(admit(&Method::POST, path, reader), Err("write"), "{path}");
        }
        for path in ["/events/processed", "/events/stream", "/events/0197", "/api/activities", "/events/processed/"] {
            assert_eq!(admit(&Method::GET, path, reader), Ok("desk".into()), "{path}");
            assert_eq!(admit(&Method::GET, path, writer), Err("read"), "{path}");
        }
        for (method, path) in [(Method::PUT, "/log-level"), (Method::GET, "/new"), (Method::GET, "//health")] {
            assert_eq!(admit(&method, path, reader), Ok("desk".into()), "{path}");
            assert_eq!(admit(&method, path, writer), Err("admin"), "{path}");
            assert_eq!(admit(&method, path, None), Err("no key"), "{path}");
        }
        for path in ["/", "/health", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/"] {
            assert_eq!(admit(&Method::GET, path, None), Ok("anonymous".into()), "{path}");
        }
    }

    #[test]
    fn a_key_comes_in_either_header() {
        let posted = |name, value: &str| admit(&Method::POST, "/events/generate", Some((name, value)));
        assert_eq!(posted("authorization", &format!("bearer  {WRITER}")), Ok("shop".into()));
        assert_eq!(posted("authorization", WRITER), Err("no key"));
        assert_eq!(posted("authorization", "Basic Og=="), Err("no key"));
        for almost in ["", &WRITER[1..], &format!("{WRITER}x"), &WRITER.to_uppercase()] {
            assert_eq!(posted("x-api-key", almost), Err("unknown"), "{almost}");
        }
    }

    #[test]
    fn every_wrong_line_is_named_and_none_is_shown() {
        let hash = "0".repeat(64);
        let file = format!(
            "a {hash} write\nb hunter2hunter2 read\na {hash} read\nc {hash} root\nanonymous {hash} read\nd\ne {hash} read\n"
        );
        let error = parse(&file).err().unwrap();
        for line in [
            "line 2: the hash",
            "line 3: the id \"a\"",
            "line 4: the scopes",
            "line 5: the id",
            "line 6",
            "line 7: the same key as \"a\"",
        ] {
            assert!(error.contains(line), "{line}: {error}");
        }
        assert!(!error.contains("hunter2"), "{error}");
        assert!(parse("# none\n").err().unwrap().contains("no key"));
    }

    #[test]
    fn what_hash_key_prints_is_a_line_of_the_file() {
        let known = "5df9a9f2e9b9f6e0";
        assert!(parse(&line("a", known, "write,read").unwrap()).is_ok());
        for (id, key, scopes) in [("a", "short", "read"), ("", known, "read"), ("a b", known, "read"), ("a", known, "")]
        {
            assert!(line(id, key, scopes).is_err(), "{id} {key} {scopes}");
        }
    }

    #[tokio::test]
    async fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
        const SOON: Duration = Duration::from_millis(10);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text()).unwrap();
        let keys = Arc::new(Keys::new(KeyFile::read(file.path()).unwrap()));
        let following = tokio::spawn(Arc::clone(&keys).follow(SOON));
        let is_known = |key: &str| keys.find(&digest(&SHA256, key.as_bytes())).is_some();
        let until = async |known: bool| {
            let changed = async {
                while is_known("a-key-that-is-new") != known {
                    tokio::time::sleep(SOON).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), changed).await.unwrap();
        };
        std::fs::write(file.path(), line("new", "a-key-that-is-new", "read").unwrap()).unwrap();
        until(true).await;
        assert!(!is_known(WRITER), "a key that left the file is void");
        std::fs::write(file.path(), "nonsense").unwrap();
        tokio::time::sleep(20 * SOON).await;
        assert!(is_known("a-key-that-is-new"));
        std::fs::write(file.path(), text()).unwrap();
        until(false).await;
        following.abort();
    }
}
