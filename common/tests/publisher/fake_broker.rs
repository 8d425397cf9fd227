//! A broker that answers as a test tells it to: for what a real one can't be made to do. It speaks version 0 of
//! `ApiVersions`, Metadata and Produce, see <https://kafka.apache.org/protocol>.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What happens to a Produce request.
#[derive(Debug, Clone)]
pub(crate) enum Produce {
    /// Each partition is answered with this error code, 0 for none; offsets count from 0.
    Answer(fn(&Request) -> Vec<(i32, i16)>),
    /// Every partition is answered with the next of these codes, and without an error when there are no more.
    AnswerEach(Arc<Mutex<VecDeque<i16>>>),
    /// As an answer without errors, once the test lets it go.
    AnswerLater(Arc<Notify>),
    /// The connection is closed.
    Close,
    /// Nothing, for ever.
    Hang,
    /// A reply of a negative size: the crate panics.
    Nonsense,
}

/// The records of one Produce request, per partition.
pub(crate) type Request = Vec<(i32, Vec<Vec<u8>>)>;

/// See the module.
pub(crate) struct FakeBroker {
    listener: TcpListener,
    address: String,
    script: Mutex<Produce>,
    /// Every Produce request that came.
    pub(crate) produced: Mutex<Vec<Request>>,
}

/// A cluster of such brokers that has one topic: partition n is led by broker n modulo their number.
pub(crate) async fn cluster(topic: &str, partitions: i32, brokers: usize) -> Vec<Arc<FakeBroker>> {
    let mut all = Vec::new();
    for _ in 0..brokers {
        all.push(Arc::new(FakeBroker::bind().await));
    }
    let addresses: Vec<_> = all.iter().map(|broker| broker.listener.local_addr().unwrap().port()).collect();
    let metadata = Arc::new(metadata(topic, partitions, &addresses));
    for broker in &all {
        tokio::spawn(Arc::clone(broker).serve(Arc::clone(&metadata)));
    }
    all
}

impl FakeBroker {
    async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address, script: Mutex::new(Produce::Answer(well)), produced: Mutex::default() }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// From now on Produce requests meet this.
    pub(crate) fn will(&self, produce: Produce) {
        *self.script.lock().unwrap() = produce;
    }

    async fn serve(self: Arc<Self>, metadata: Arc<Vec<u8>>) {
        while let Ok((connection, _)) = self.listener.accept().await {
            let (broker, metadata) = (Arc::clone(&self), Arc::clone(&metadata));
            tokio::spawn(async move { broker.talk(connection, &metadata).await });
        }
    }

    /// Answers until the client goes or the script says to close.
    async fn talk(&self, mut connection: TcpStream, metadata: &[u8]) -> Option<()> {
        loop {
            let size = connection.read_i32().await.ok()?;
            let mut request = vec![0; size.try_into().ok()?];
            connection.read_exact(&mut request).await.ok()?;
            let mut request = Bytes(&request);
            let (api, _version, correlation) = (request.i16(), request.i16(), request.take(4).to_vec());
            request.string();
            let body = match api {
                18 => versions(),
                3 => metadata.to_vec(),
                0 => self.produce(&mut request, &mut connection).await?,
                other => panic!("unexpected request {other}"),
            };
            let size = i32::try_from(body.len() + 4).unwrap().to_be_bytes();
            connection.write_all(&[&size[..], &correlation, &body].concat()).await.ok()?;
        }
    }

    async fn produce(&self, request: &mut Bytes<'_>, connection: &mut TcpStream) -> Option<Vec<u8>> {
        let (topic, request) = request.produce();
        self.produced.lock().unwrap().push(request.clone());
        let script = self.script.lock().unwrap().clone();
        match script {
            Produce::Answer(answer) => Some(produced(&topic, &answer(&request))),
            Produce::AnswerEach(codes) => {
                let code = codes.lock().unwrap().pop_front().unwrap_or_default();
                let partitions: Vec<_> = request.iter().map(|(partition, _)| (*partition, code)).collect();
                Some(produced(&topic, &partitions))
            }
            Produce::AnswerLater(go) => {
                go.notified().await;
                Some(produced(&topic, &well(&request)))
            }
            Produce::Close => None,
            Produce::Hang => std::future::pending().await,
            Produce::Nonsense => {
                connection.write_all(&(-1_i32).to_be_bytes()).await.ok()?;
                std::future::pending().await
            }
        }
    }
}

/// No error for any partition.
pub(crate) fn well(request: &Request) -> Vec<(i32, i16)> {
    request.iter().map(|(partition, _)| (*partition, 0)).collect()
}

/// `ApiVersions`: Produce, Fetch and Metadata from 0.
fn versions() -> Vec<u8> {
    let apis = [0_i16, 1, 3].map(|api| [api.to_be_bytes(), 0_i16.to_be_bytes(), 9_i16.to_be_bytes()].concat());
    [&[0, 0][..], &3_i32.to_be_bytes(), &apis.concat()].concat()
}

fn metadata(topic: &str, partitions: i32, ports: &[u16]) -> Vec<u8> {
    let count = i32::try_from(ports.len()).unwrap();
    let mut reply = count.to_be_bytes().to_vec();
    for (id, port) in (0_i32..).zip(ports) {
        reply.extend([&id.to_be_bytes()[..], &string("127.0.0.1"), &i32::from(*port).to_be_bytes()].concat());
    }
    reply.extend([&1_i32.to_be_bytes()[..], &0_i16.to_be_bytes(), &string(topic), &partitions.to_be_bytes()].concat());
    for id in 0..partitions {
        let (error, leader, none) = (0_i16.to_be_bytes(), id % count, 0_i32.to_be_bytes());
        reply.extend([&error[..], &id.to_be_bytes(), &leader.to_be_bytes(), &none, &none].concat());
    }
    reply
}

fn produced(topic: &str, partitions: &[(i32, i16)]) -> Vec<u8> {
    let count = i32::try_from(partitions.len()).unwrap();
    let mut reply = [&1_i32.to_be_bytes()[..], &string(topic), &count.to_be_bytes()].concat();
    for (partition, error) in partitions {
        reply.extend([&partition.to_be_bytes()[..], &error.to_be_bytes(), &0_i64.to_be_bytes()].concat());
    }
    reply
}

fn string(text: &str) -> Vec<u8> {
    [&i16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// What is left of a request.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        self.0.split_off(..count).unwrap()
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn string(&mut self) -> String {
        let length = self.i16().max(0);
        String::from_utf8(self.take(length.try_into().unwrap()).to_vec()).unwrap()
    }

    /// Bytes behind their length.
    fn sized(&mut self) -> &'a [u8] {
        let length = self.i32();
        self.take(length.try_into().unwrap())
    }

    /// The topic, and the values per partition.
    fn produce(&mut self) -> (String, Request) {
        let (acks, _timeout, topics) = (self.i16(), self.i32(), self.i32());
        assert_eq!((acks, topics), (-1, 1), "by all in-sync replicas");
        let topic = self.string();
        let partitions = (0..self.i32()).map(|_| (self.i32(), Bytes(self.sized()).messages())).collect();
        (topic, partitions)
    }

    fn messages(mut self) -> Vec<Vec<u8>> {
        let mut values = Vec::new();
        while !self.0.is_empty() {
            self.take(8);
            let mut message = Bytes(self.sized());
            // Checksum, format and attributes.
            message.take(6);
            let _key = message.sized();
            values.push(message.sized().to_vec());
        }
        values
    }
}
