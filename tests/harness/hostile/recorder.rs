//! A backend that keeps every byte it is sent, and does what the case in hand says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Act;
use crate::edit::Edit;
use crate::scripted::accept_upgrade;
use crate::tasks::{Panics, Tasks};

/// What a backend says to a request that is no upgrade.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Dropping it closes its listener and all its sockets, and fails the test if one of its tasks has
/// panicked.
#[derive(Debug)]
pub struct Recorder {
    address: SocketAddr,
    scene: watch::Sender<Arc<Scene>>,
    _server: Tasks,
}

/// What happens at a backend during one case.
#[derive(Debug, Default)]
pub(super) struct Scene {
    acts: Vec<Act>,
    /// Shared where only the first request of all is played to: it has been.
    is_played: Option<Arc<AtomicBool>>,
    connections: Mutex<Vec<Arc<Connection>>>,
}

/// What happened on one connection.
#[derive(Debug, Default)]
pub(super) struct Connection(Mutex<Heard>);

#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub(super) bytes: Vec<u8>,
    pub(super) was_early: bool,
    pub(super) has_ended: bool,
}

impl Recorder {
    /// Starts one on a free port.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let scene = watch::Sender::new(Arc::<Scene>::default());
        let changes = scene.subscribe();
        let server = Tasks::start(|panics| serve(listener, changes, panics));
        Ok(Self {
            address,
            scene,
            _server: server,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections, and does this on the next ones; only on the first of all, if
    /// `is_played` is shared with other backends.
    pub(super) fn begin(&self, acts: &[Act], is_played: Option<Arc<AtomicBool>>) {
        self.scene.send_replace(Arc::new(Scene {
            acts: acts.to_vec(),
            is_played,
            connections: Mutex::default(),
        }));
    }

    /// Is a good backend until the next case.
    pub fn usual(&self) {
        self.begin(&[Act::Usual], None);
    }

    /// What was heard since it began, by connection; those with nothing are left out.
    pub(super) fn heard(&self) -> Vec<Heard> {
        let scene = Arc::clone(&self.scene.borrow());
        let connections = locked(&scene.connections);
        let heard = connections.iter().map(|one| locked(&one.0).clone());
        heard.filter(|heard| !heard.bytes.is_empty()).collect()
    }
}

async fn serve(listener: TcpListener, mut scene: watch::Receiver<Arc<Scene>>, panics: Panics) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            changed = scene.changed() => {
                if changed.is_err() {
                    return;
                }
                connections.abort_all();
            }
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let scene = Arc::clone(&scene.borrow_and_update());
                connections.spawn(panics.watch(connection(stream, scene)));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, scene: Arc<Scene>) {
    let heard = Arc::<Connection>::default();
    locked(&scene.connections).push(Arc::clone(&heard));
    let mut ear = Ear { stream, heard };
    ear.play(&scene).await;
    locked(&ear.heard.0).has_ended = true;
}

struct Ear {
    stream: TcpStream,
    heard: Arc<Connection>,
}

impl Ear {
    async fn play(&mut self, scene: &Scene) {
        if !self.listen(|bytes| head_of(bytes).is_some()).await {
            return;
        }
        let is_second = scene
            .is_played
            .as_ref()
            .is_some_and(|is_played| is_played.swap(true, Ordering::Relaxed));
        let acts = if is_second {
            &[Act::Usual]
        } else {
            &scene.acts[..]
        };
        for act in acts {
            if !self.act(act).await {
                return;
            }
        }
        self.listen(|_| false).await;
    }

    /// Reads until `is_enough`; false if that is never.
    async fn listen(&mut self, is_enough: impl Fn(&[u8]) -> bool) -> bool {
        let mut room = [0; 16 * 1024];
        loop {
            if is_enough(&locked(&self.heard.0).bytes) {
                return true;
            }
            match self.stream.read(&mut room).await {
                Ok(n @ 1..) => locked(&self.heard.0).bytes.extend_from_slice(&room[..n]),
                _ => return false,
            }
        }
    }

    /// False: nothing more can be done here.
    async fn act(&mut self, act: &Act) -> bool {
        match act {
            Act::Usual => self.usual().await,
            Act::Say(bytes) => self.say(bytes).await,
            Act::Accept(text, other) => {
                let mut accept = accept_upgrade(&self.head(), &[]);
                if !text.is_empty() {
                    accept = accept.replace_once(text, other);
                }
                self.say(accept.as_bytes()).await
            }
            Act::Quiet(time) => {
                let n = locked(&self.heard.0).bytes.len();
                let more = timeout(*time, self.listen(|bytes| bytes.len() > n)).await;
                if more == Ok(true) {
                    locked(&self.heard.0).was_early = true;
                }
                more != Ok(false)
            }
            Act::Hear(wanted) => self.listen(|bytes| holds(bytes, wanted)).await,
            Act::HearEnd => {
                self.listen(|_| false).await;
                true
            }
            Act::Flood(bytes) => {
                while self.say(bytes).await {}
                false
            }
            Act::Dribble(bytes, pause) => self.dribble(bytes, *pause).await,
            Act::Fin => self.stream.shutdown().await.is_ok(),
            Act::Reset => {
                let _set = self.stream.set_zero_linger();
                false
            }
            Act::Close => false,
        }
    }

    async fn usual(&mut self) -> bool {
        let head = self.head();
        if !head.to_lowercase().contains("\r\nupgrade: websocket\r\n") {
            return self.say(OK.as_bytes()).await;
        }
        let accept = accept_upgrade(&head, &[]);
        self.say(accept.as_bytes()).await
            && self.listen(|bytes| bytes.len() > head.len()).await
            && self.say(b"\x81\x02hi").await
    }

    async fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    async fn dribble(&mut self, bytes: &[u8], pause: Duration) -> bool {
        for byte in bytes {
            sleep(pause).await;
            if !self.say(&[*byte]).await {
                return false;
            }
        }
        true
    }

    fn head(&self) -> String {
        let heard = locked(&self.heard.0);
        head_of(&heard.bytes).map_or_else(String::new, |head| {
            head.iter().map(|byte| char::from(*byte)).collect()
        })
    }
}

/// Up to the first empty line.
fn head_of(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    bytes.get(..end + 4)
}

pub(super) fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|some| some == wanted)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is whole after every change, whoever panicked since.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
