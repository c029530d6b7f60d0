//! The bytes of the client/server protocol, version 10, as far as a text client needs it.
//!
//! Source: "MySQL Internals, Client/Server Protocol", <https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html>.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

use sha2::{Digest, Sha256};

const LONG_PASSWORD: u32 = 0x1;
const CONNECT_WITH_DB: u32 = 0x8;
const PROTOCOL_41: u32 = 0x200;
const TRANSACTIONS: u32 = 0x2000;
const SECURE_CONNECTION: u32 = 0x8000;
const MULTI_RESULTS: u32 = 0x2_0000;
const PLUGIN_AUTH: u32 = 0x8_0000;
const PLUGIN_AUTH_LENENC: u32 = 0x20_0000;
const CAPABILITIES: u32 = LONG_PASSWORD
    | CONNECT_WITH_DB
    | PROTOCOL_41
    | TRANSACTIONS
    | SECURE_CONNECTION
    | MULTI_RESULTS
    | PLUGIN_AUTH
    | PLUGIN_AUTH_LENENC;
/// `utf8mb4_general_ci`.
const COLLATION: u8 = 45;
const AUTOCOMMIT: u16 = 0x2;
const NONCE: &[u8; 20] = b"scripted-server-salt";

/// How passwords are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// `caching_sha2_password`, the server having the account in its cache.
    #[default]
    FastSha2,
    /// `caching_sha2_password`, the account not being in the cache: the client sends the password by the socket.
    FullSha2,
    /// `mysql_native_password`, asked for by a switch; any answer will do.
    Native,
}

/// An error as the protocol says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// Number, such as 1317.
    pub code: u16,
    /// SQLSTATE, five characters.
    pub state: &'static str,
    /// Text.
    pub message: String,
}

impl SqlError {
    /// An error with the general SQLSTATE.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, state: "HY000", message: message.into() }
    }
}

/// A table of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Rows {
    /// A table of these columns, without rows.
    #[must_use]
    pub fn of(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|name| (*name).to_owned()).collect(), rows: vec![] }
    }
}

/// One end of a connection.
pub(super) struct Wire {
    pub(super) stream: UnixStream,
    sequence: u8,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, sequence: 0 }
    }

    /// The next packet; `None` at the end of the stream.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 4];
        match self.stream.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        self.sequence = head[3].wrapping_add(1);
        let length = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        Ok(Some(payload))
    }

    fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("packets of tests are small").to_le_bytes();
        let mut packet = vec![length[0], length[1], length[2], self.sequence];
        packet.extend_from_slice(payload);
        self.sequence = self.sequence.wrapping_add(1);
        self.stream.write_all(&packet)
    }

    /// The next command: its number and what follows.
    pub(super) fn command(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        let packet = self.read()?;
        Ok(packet.and_then(|packet| packet.split_first().map(|(first, rest)| (*first, rest.to_vec()))))
    }

    pub(super) fn ok(&mut self, affected: u64) -> io::Result<()> {
        let mut payload = vec![0];
        put_int(&mut payload, affected);
        put_int(&mut payload, 0);
        payload.extend(AUTOCOMMIT.to_le_bytes());
        payload.extend([0, 0]);
        self.write(&payload)
    }

    pub(super) fn error(&mut self, error: &SqlError) -> io::Result<()> {
        let mut payload = vec![0xff];
        payload.extend(error.code.to_le_bytes());
        payload.push(b'#');
        payload.extend(error.state.as_bytes());
        payload.extend(error.message.as_bytes());
        self.write(&payload)
    }

    /// A result set of the text protocol: every value is a string.
    pub(super) fn rows(&mut self, rows: &Rows) -> io::Result<()> {
        let mut count = vec![];
        put_int(&mut count, rows.columns.len() as u64);
        self.write(&count)?;
        for name in &rows.columns {
            self.write(&column(name))?;
        }
        self.end_of_rows()?;
        for row in &rows.rows {
            let mut payload = vec![];
            for value in row {
                match value {
                    Some(text) => put_text(&mut payload, text.as_bytes()),
                    None => payload.push(0xfb),
                }
            }
            self.write(&payload)?;
        }
        self.end_of_rows()
    }

    fn end_of_rows(&mut self) -> io::Result<()> {
        let [low, high] = AUTOCOMMIT.to_le_bytes();
        self.write(&[0xfe, 0, 0, low, high])
    }

    /// Greets, and lets in whoever knows the password. The user's name; `None` for one who left.
    pub(super) fn login(
        &mut self,
        id: u32,
        version: &str,
        how: Login,
        password: &dyn Fn(&str) -> Option<String>,
    ) -> io::Result<Option<String>> {
        self.write(&greeting(id, version))?;
        let Some(response) = self.read()? else { return Ok(None) };
        let (user, mut answer) = response_parts(&response);
        let Some(password) = password(&user) else { return self.denied(&user) };
        if how == Login::Native {
            self.write(&switch("mysql_native_password"))?;
            let Some(switched) = self.read()? else { return Ok(None) };
            answer = switched;
        }
        let admitted = if password.is_empty() {
            answer.is_empty()
        } else {
            match how {
                Login::Native => answer.len() == 20,
                Login::FastSha2 if answer == sha2_answer(&password) => {
                    self.write(&[1, 3])?;
                    true
                }
                Login::FastSha2 => false,
                Login::FullSha2 => {
                    self.write(&[1, 4])?;
                    self.read()?.is_some_and(|sent| sent.strip_suffix(&[0]) == Some(password.as_bytes()))
                }
            }
        };
        if !admitted {
            return self.denied(&user);
        }
        self.ok(0)?;
        Ok(Some(user))
    }

    fn denied(&mut self, user: &str) -> io::Result<Option<String>> {
        let message = format!("Access denied for user '{user}'@'localhost' (using password: YES)");
        self.error(&SqlError { code: 1045, state: "28000", message })?;
        Ok(None)
    }
}

fn greeting(id: u32, version: &str) -> Vec<u8> {
    let mut payload = vec![10];
    payload.extend(version.as_bytes());
    payload.push(0);
    payload.extend(id.to_le_bytes());
    payload.extend(&NONCE[..8]);
    payload.push(0);
    let capabilities = CAPABILITIES.to_le_bytes();
    payload.extend(&capabilities[..2]);
    payload.push(COLLATION);
    payload.extend(AUTOCOMMIT.to_le_bytes());
    payload.extend(&capabilities[2..]);
    payload.push(21);
    payload.extend([0; 10]);
    payload.extend(&NONCE[8..]);
    payload.push(0);
    payload.extend(b"caching_sha2_password\0");
    payload
}

fn switch(plugin: &str) -> Vec<u8> {
    let mut payload = vec![0xfe];
    payload.extend(plugin.as_bytes());
    payload.push(0);
    payload.extend(NONCE);
    payload.push(0);
    payload
}

/// User and authentication data of a handshake response.
fn response_parts(packet: &[u8]) -> (String, Vec<u8>) {
    let capabilities = u32::from_le_bytes([packet[0], packet[1], packet[2], packet[3]]);
    let rest = &packet[32..];
    let end = rest.iter().position(|byte| *byte == 0).expect("the user's name ends");
    let user = String::from_utf8_lossy(&rest[..end]).into_owned();
    let rest = &rest[end + 1..];
    assert!(capabilities & SECURE_CONNECTION != 0, "the client speaks 4.1");
    let length = usize::from(rest.first().copied().unwrap_or(0));
    assert!(length < 0xfb, "authentication data is short");
    (user, rest.get(1..=length).unwrap_or_default().to_vec())
}

/// `SHA256(password) XOR SHA256(SHA256(SHA256(password)) + nonce)`.
fn sha2_answer(password: &str) -> Vec<u8> {
    let once = Sha256::digest(password.as_bytes());
    let twice = Sha256::digest(once);
    let mut salted = Sha256::new();
    salted.update(twice);
    salted.update(NONCE);
    once.iter().zip(salted.finalize()).map(|(a, b)| a ^ b).collect()
}

/// A column definition of type VAR_STRING.
fn column(name: &str) -> Vec<u8> {
    let mut payload = vec![];
    for text in ["def", "", "", "", name, ""] {
        put_text(&mut payload, text.as_bytes());
    }
    payload.push(0x0c);
    payload.extend([COLLATION, 0]);
    payload.extend(1024_u32.to_le_bytes());
    payload.extend([253, 0, 0, 0, 0, 0]);
    payload
}

fn put_text(payload: &mut Vec<u8>, text: &[u8]) {
    put_int(payload, text.len() as u64);
    payload.extend_from_slice(text);
}

/// A length-encoded integer.
fn put_int(payload: &mut Vec<u8>, value: u64) {
    let bytes = value.to_le_bytes();
    match value {
        0..0xfb => payload.push(bytes[0]),
        0xfb..0x1_0000 => {
            payload.push(0xfc);
            payload.extend(&bytes[..2]);
        }
        _ => {
            payload.push(0xfd);
            payload.extend(&bytes[..3]);
        }
    }
}
