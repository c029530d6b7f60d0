//! A connection that speaks the replication part of the protocol, which the `mysql` crate keeps to itself: packets as they
//! are. Account, password and certificates are found and sent as [`Connection`](super::super::Connection) does.
//!
//! Packets: <https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html>. `mysql_common` knows what is
//! in those of the login.
//!
//! Crash story: a socket, which ends with us; the server's thread that feeds it ends with it.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use model::{
    pathtext,
    port::{Failure, FailureKind},
    server::{ServerAccess, ServerAddress},
};
use mysql_common::{
    constants::CapabilityFlags,
    io::ParseBuf,
    packets::{AuthPlugin, AuthSwitchRequest, HandshakePacket, HandshakeResponse, SslRequest},
    proto::MySerialize,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use super::super::{
    connect::is_loopback,
    options::{self, Credentials},
};

/// A packet of this length goes on in the next.
const FULL: usize = 0xff_ff_ff;
/// Nothing longer is sent to a replica (`slave_max_allowed_packet`).
const LARGEST: u32 = 1 << 30;
/// `utf8mb4_general_ci`.
const UTF8MB4: u8 = 45;

/// A connection after its login.
pub struct Wire {
    stream: Stream,
    address: ServerAddress,
    received: Vec<u8>,
    /// How much of it was taken.
    taken: usize,
    /// What of a long packet was received.
    long: Vec<u8>,
    sequence: u8,
    timeout: Option<Duration>,
    /// How long to let come together what comes, and whether all that came was read.
    gather: Duration,
    is_empty: bool,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// Connects and logs in; no wait on the way is longer than this.
    ///
    /// # Errors
    /// [`FailureKind::Refused`] for a login that is denied, files that others can read, or a certificate that is not trusted;
    /// [`FailureKind::Lost`] if there is no server.
    pub fn open(access: &ServerAccess, within: Duration) -> Result<Self, Failure> {
        let found = options::credentials(access).map_err(Failure::from)?;
        let stream = connect(&access.address, within).map_err(|error| unreachable(&access.address, error))?;
        let mut wire = Self {
            stream,
            address: access.address.clone(),
            received: Vec::new(),
            taken: 0,
            long: Vec::new(),
            sequence: 0,
            timeout: None,
            gather: Duration::ZERO,
            is_empty: false,
        };
        wire.log_in(&found, within)?;
        Ok(wire)
    }

    /// Runs a statement that has no rows as its answer.
    ///
    /// # Errors
    /// If the server refuses it or does not answer in time.
    pub fn run(&mut self, sql: &str, within: Duration) -> Result<(), Failure> {
        const QUERY: u8 = 3;
        let mut packet = vec![QUERY];
        packet.extend_from_slice(sql.as_bytes());
        self.command(&packet)?;
        self.expect_ok(within)
    }

    /// From now on reads at most once in this time while little comes. A server under load sends each event by itself, and to wake
    /// up for each costs it a processor that it needs.
    pub fn gather(&mut self, time: Duration) {
        self.gather = time;
    }

    /// Sends a command.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn command(&mut self, packet: &[u8]) -> Result<(), Failure> {
        self.sequence = 0;
        self.send(packet)
    }

    /// Reads an answer that must be "OK".
    ///
    /// # Errors
    /// If it is not.
    pub fn expect_ok(&mut self, within: Duration) -> Result<(), Failure> {
        let packet = self.must_receive(within)?;
        match packet.first() {
            Some(0) => Ok(()),
            Some(0xff) => Err(self.said(&packet)),
            _ => Err(self.odd("another answer than OK")),
        }
    }

    /// The next packet; nothing if none is complete in this time. What came of it stays, and is not lost.
    ///
    /// # Errors
    /// [`FailureKind::Lost`] if the connection is.
    pub fn receive(&mut self, within: Duration) -> Result<Option<Vec<u8>>, Failure> {
        let until = Instant::now() + within;
        loop {
            if let Some(packet) = self.complete() {
                return Ok(Some(packet));
            }
            let left = until.saturating_duration_since(Instant::now());
            if !self.fill(left)? && left.is_zero() {
                return Ok(None);
            }
        }
    }

    fn must_receive(&mut self, within: Duration) -> Result<Vec<u8>, Failure> {
        match self.receive(within)? {
            Some(packet) => Ok(packet),
            None => Err(Failure::new(
                FailureKind::TimedOut,
                format!("the server at {} does not answer", self.address),
                "",
            )),
        }
    }

    /// Takes a packet that is complete from what was received, its parts joined.
    fn complete(&mut self) -> Option<Vec<u8>> {
        loop {
            let [a, b, c, sequence, rest @ ..] = &self.received[self.taken..] else { return None };
            let length = usize::from(*a) | usize::from(*b) << 8 | usize::from(*c) << 16;
            let part = rest.get(..length)?;
            self.sequence = sequence.wrapping_add(1);
            self.long.extend_from_slice(part);
            self.taken += 4 + length;
            if length < FULL {
                return Some(std::mem::take(&mut self.long));
            }
        }
    }

    /// Receives something; false if nothing came in time.
    fn fill(&mut self, within: Duration) -> Result<bool, Failure> {
        let nap = if self.is_empty { self.gather.min(within) } else { Duration::ZERO };
        thread::sleep(nap);
        let within = within.saturating_sub(nap);
        // Zero would mean without end.
        let within = within.max(Duration::from_millis(1));
        let mut buffer = [0; 1 << 16];
        let read = self.set_timeout(within).and_then(|()| self.stream.read(&mut buffer));
        match read {
            Ok(0) => Err(self.lost("it closed the connection")),
            Ok(n) => {
                self.is_empty = n < buffer.len();
                self.received.drain(..std::mem::take(&mut self.taken));
                self.received.extend_from_slice(&buffer[..n]);
                Ok(true)
            }
            Err(error) if is_timeout(&error) => {
                self.is_empty = false;
                Ok(false)
            }
            Err(error) => Err(self.lost(&error.to_string())),
        }
    }

    fn set_timeout(&mut self, within: Duration) -> io::Result<()> {
        if self.timeout == Some(within) {
            return Ok(());
        }
        match &self.stream {
            Stream::Unix(stream) => stream.set_read_timeout(Some(within))?,
            Stream::Tcp(stream) => stream.set_read_timeout(Some(within))?,
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(within))?,
        }
        self.timeout = Some(within);
        Ok(())
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn send(&mut self, packet: &[u8]) -> Result<(), Failure> {
        let mut bytes = Vec::with_capacity(packet.len() + 4);
        for part in packet.chunks(FULL) {
            let length = u32::try_from(part.len()).unwrap_or(0).to_le_bytes();
            bytes.extend_from_slice(&[length[0], length[1], length[2], self.sequence]);
            bytes.extend_from_slice(part);
            self.sequence = self.sequence.wrapping_add(1);
        }
        if packet.is_empty() {
            bytes.extend_from_slice(&[0, 0, 0, self.sequence]);
            self.sequence = self.sequence.wrapping_add(1);
        }
        let sent = self.stream.write_all(&bytes).and_then(|()| self.stream.flush());
        sent.map_err(|error| self.lost(&error.to_string()))
    }

    /// Sends a packet that begins a conversation of its own.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn send_alone(&mut self, packet: &[u8]) -> Result<(), Failure> {
        self.sequence = 0;
        self.send(packet)
    }

    fn log_in(&mut self, found: &Credentials, within: Duration) -> Result<(), Failure> {
        let packet = self.must_receive(within)?;
        if packet.first() == Some(&0xff) {
            return Err(self.said(&packet));
        }
        let handshake =
            ParseBuf(&packet).parse::<HandshakePacket<'_>>(()).map_err(|_| self.odd("no handshake"))?;
        let mut flags = (CapabilityFlags::CLIENT_PROTOCOL_41
            | CapabilityFlags::CLIENT_SECURE_CONNECTION
            | CapabilityFlags::CLIENT_LONG_PASSWORD
            | CapabilityFlags::CLIENT_TRANSACTIONS
            | CapabilityFlags::CLIENT_PLUGIN_AUTH)
            & handshake.capabilities();
        if let ServerAddress::Tcp { host, .. } = &self.address.clone()
            && (found.tls_ca.is_some() || !is_loopback(host))
        {
            if !handshake.capabilities().contains(CapabilityFlags::CLIENT_SSL) {
                return Err(self.refused(
                    "does not offer TLS, without which nothing is sent to another host",
                    "give it a certificate (ssl_cert, ssl_key), or reach it by its socket",
                ));
            }
            flags.insert(CapabilityFlags::CLIENT_SSL);
            self.send(&serialized(&SslRequest::new(flags, LARGEST, UTF8MB4)))?;
            self.secure(host, found)?;
        }
        let mut nonce = handshake.nonce();
        nonce.resize(20, 0);
        let plugin = match handshake.auth_plugin() {
            Some(plugin @ AuthPlugin::CachingSha2Password) => plugin.into_owned(),
            _ => AuthPlugin::MysqlNativePassword,
        };
        let password = found.password.as_ref().map(|secret| secret.reveal());
        let proof = plugin.gen_data(password, &nonce).map(|data| data.into_owned());
        let version = handshake.server_version_parsed().unwrap_or((5, 7, 0));
        let response = HandshakeResponse::new(
            proof.as_deref(),
            version,
            found.user.as_deref().map(str::as_bytes),
            None::<&[u8]>,
            Some(plugin),
            flags,
            None,
            LARGEST,
        );
        self.send(&serialized(&response))?;
        self.authenticate(password, within)
    }

    /// Answers what the server asks until it lets us in.
    fn authenticate(&mut self, password: Option<&str>, within: Duration) -> Result<(), Failure> {
        const STEPS: usize = 8;
        for _ in 0..STEPS {
            let packet = self.must_receive(within)?;
            match packet.as_slice() {
                [0, ..] => return Ok(()),
                [0xff, ..] => return Err(self.said(&packet)),
                // The server remembers the password (caching_sha2_password).
                [1, 3] => {}
                // It does not, and wants all of it.
                [1, 4] => self.reveal(password)?,
                [0xfe, _, ..] => {
                    let request = ParseBuf(&packet).parse::<AuthSwitchRequest<'_>>(());
                    let request = request.map_err(|_| self.odd("an unknown way of logging in"))?;
                    let plugin = request.auth_plugin();
                    if matches!(plugin, AuthPlugin::MysqlOldPassword | AuthPlugin::MysqlClearPassword) {
                        return Err(self.refused(
                            "asks for the password in a form that is not sent",
                            "give the account another authentication plugin",
                        ));
                    }
                    let proof = plugin.gen_data(password, request.plugin_data());
                    let proof = proof.map(|data| data.into_owned().to_vec()).unwrap_or_default();
                    self.send(&proof)?;
                }
                _ => return Err(self.odd("an unknown step of the login")),
            }
        }
        Err(self.odd("a login without end"))
    }

    fn reveal(&mut self, password: Option<&str>) -> Result<(), Failure> {
        if matches!(self.stream, Stream::Tcp(_)) {
            return Err(self.refused(
                "asks for the whole password over a connection that others can read",
                "name tls_ca in the inventory, or reach it by its socket",
            ));
        }
        let mut bytes = password.unwrap_or_default().as_bytes().to_vec();
        bytes.push(0);
        self.send(&bytes)
    }

    fn secure(&mut self, host: &str, found: &Credentials) -> Result<(), Failure> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(path) = &found.tls_ca {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let certificates = read.map_err(|error| {
                let what = format!("{} cannot be read as certificates", pathtext::show(path));
                Failure::new(FailureKind::Refused, what, "correct tls_ca").because(error)
            })?;
            roots.add_parsable_certificates(certificates);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| self.not_trusted(&error.to_string()))?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name =
            ServerName::try_from(host.to_owned()).map_err(|error| self.not_trusted(&error.to_string()))?;
        let client = ClientConnection::new(Arc::new(config), name);
        let client = client.map_err(|error| self.not_trusted(&error.to_string()))?;
        let Stream::Tcp(stream) = &self.stream else { return Ok(()) };
        let stream = stream.try_clone().map_err(|error| self.lost(&error.to_string()))?;
        let mut stream = StreamOwned::new(client, stream);
        while stream.conn.is_handshaking() {
            stream
                .conn
                .complete_io(&mut stream.sock)
                .map_err(|error| self.not_trusted(&error.to_string()))?;
        }
        self.stream = Stream::Tls(Box::new(stream));
        Ok(())
    }

    fn not_trusted(&self, why: &str) -> Failure {
        self.refused(
            &format!("is not trusted: {why}"),
            "name the authority that signed its certificate as tls_ca, and the server as its certificate does",
        )
    }

    /// What the server says went wrong: its number and its words.
    #[must_use]
    pub fn said(&self, packet: &[u8]) -> Failure {
        let (code, text) = error_of(packet);
        let kind = match code {
            1044 | 1045 | 1227 | 1698 => FailureKind::Refused,
            _ => FailureKind::Lost,
        };
        let remedy = if kind == FailureKind::Refused {
            "give the account REPLICATION SLAVE (MariaDB: also BINLOG MONITOR), or correct its password"
        } else {
            ""
        };
        Failure::new(kind, format!("the server at {} says: {text} ({code})", self.address), remedy)
    }

    fn refused(&self, what: &str, remedy: &str) -> Failure {
        Failure::new(FailureKind::Refused, format!("the server at {} {what}", self.address), remedy)
    }

    /// The connection is of no use any more.
    #[must_use]
    pub fn lost(&self, why: &str) -> Failure {
        Failure::new(FailureKind::Lost, format!("the connection to {} is lost: {why}", self.address), "")
    }

    /// The server says what it should not.
    #[must_use]
    pub fn odd(&self, what: &str) -> Failure {
        Failure::new(FailureKind::Other, format!("the server at {} sent {what}", self.address), "")
    }
}

/// Number and words of an error packet.
#[must_use]
pub fn error_of(packet: &[u8]) -> (u16, String) {
    let code = packet.get(1..3).map_or(0, |code| u16::from_le_bytes([code[0], code[1]]));
    // A mark and five letters of state, which an error before the login does not have.
    let at = if packet.get(3) == Some(&b'#') { 9 } else { 3 };
    (code, String::from_utf8_lossy(packet.get(at..).unwrap_or_default()).into_owned())
}

fn serialized(packet: &impl MySerialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.serialize(&mut bytes);
    bytes
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn connect(address: &ServerAddress, within: Duration) -> io::Result<Stream> {
    match address {
        ServerAddress::Socket(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(within))?;
            stream.set_write_timeout(Some(within))?;
            Ok(Stream::Unix(stream))
        }
        ServerAddress::Tcp { host, port } => {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, within) {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        stream.set_read_timeout(Some(within))?;
                        stream.set_write_timeout(Some(within))?;
                        return Ok(Stream::Tcp(stream));
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

fn unreachable(address: &ServerAddress, error: io::Error) -> Failure {
    Failure::new(FailureKind::Lost, format!("the server at {address} cannot be reached"), "start it")
        .because(error)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tcp(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
