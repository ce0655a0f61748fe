//! An etcd of our own, to be killed and started again.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::ChaosError;
use super::super::client::{Endpoint, get};
use super::process::{Launch, Process, Signal};

/// How long it may take until it answers.
const START: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);

/// A single-member etcd that keeps its data over a restart.
#[derive(Debug)]
pub(crate) struct Etcd {
    launch: Launch,
    process: Process,
    client: Endpoint,
}

impl Etcd {
    /// Starts `program` for clients at `address`, with data and log below `dir`.
    ///
    /// # Errors
    /// It does not start, or does not answer in time.
    pub(crate) async fn start(
        program: &Path,
        address: SocketAddr,
        dir: &Path,
    ) -> Result<Self, ChaosError> {
        let client = format!("http://{address}");
        // Nobody joins it: any free port will do.
        let peer = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let peer = peer.map_err(|error| ChaosError::Etcd(error.to_string()))?;
        let peer = format!("http://{peer}");
        let pairs = [
            ("--name", "chaos".to_owned()),
            ("--data-dir", dir.join("etcd").display().to_string()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer.clone()),
            ("--initial-cluster", format!("chaos={peer}")),
        ];
        let launch = Launch {
            program: program.to_owned(),
            args: pairs.into_iter().flat_map(|(flag, v)| [flag.into(), v.into()]).collect(),
            namespace: None,
            env: Vec::new(),
            log: dir.join("etcd.log"),
        };
        let process = Process::start(&launch);
        let process = process.map_err(|error| ChaosError::Etcd(error.to_string()))?;
        let client = Endpoint { address, key: None };
        let mut etcd = Self { launch, process, client };
        etcd.answers().await?;
        Ok(etcd)
    }

    /// SIGKILL; back only after [`Etcd::again`].
    pub(crate) async fn kill(&mut self) {
        self.process.signal(Signal::Kill);
        self.process.end_within(Duration::from_secs(5)).await;
    }

    /// Starts it again with the data that it had.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub(crate) async fn again(&mut self) -> Result<(), ChaosError> {
        let process = Process::start(&self.launch);
        self.process = process.map_err(|error| ChaosError::Etcd(error.to_string()))?;
        self.answers().await
    }

    async fn answers(&mut self) -> Result<(), ChaosError> {
        let began = Instant::now();
        while began.elapsed() < START {
            if let Some(ended) = self.process.ended() {
                let log = self.launch.log.display();
                return Err(ChaosError::Etcd(format!("ended with {ended}; see {log}")));
            }
            if let Ok((200, _)) = get(&self.client, "/health", LOOK * 10).await {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(ChaosError::Etcd(format!(
            "does not answer at {} within {START:?}",
            self.client.address
        )))
    }
}
