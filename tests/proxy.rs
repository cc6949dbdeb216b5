//! A forward proxy for HTTP that breaks all connections after a number of bytes, like a network that fails.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Longest head of a request, in bytes.
const HEAD: usize = 64 << 10;

/// Listens on the loopback device until the tests end.
pub(crate) struct VanishingProxy {
    url: String,
    left: Arc<AtomicU64>,
}

impl VanishingProxy {
    /// Lets `bytes` through to its clients; afterwards every connection breaks, and new ones are closed at once.
    pub(crate) fn start(bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let left = Arc::new(AtomicU64::new(bytes));
        let shared = Arc::clone(&left);
        thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let left = Arc::clone(&shared);
                // A client that breaks off is no failure of the proxy.
                thread::spawn(move || serve(client, &left).ok());
            }
        });
        VanishingProxy { url, left }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns whether all of its bytes have passed.
    pub(crate) fn is_gone(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }
}

fn serve(mut client: TcpStream, left: &Arc<AtomicU64>) -> std::io::Result<()> {
    if left.load(Ordering::SeqCst) == 0 {
        return Ok(());
    }
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let tunnel = method == "CONNECT";
    let host = target.trim_start_matches("http://").split('/').next().unwrap_or_default();
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut server = TcpStream::connect(address)?;
    if tunnel {
        client.write_all(b"HTTP/1.1 200 connected\r\n\r\n")?;
    } else {
        server.write_all(&head)?;
    }
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    loop {
        let count = server.read(&mut buffer)?;
        let take = |left: u64| Some(left.saturating_sub(count as u64));
        let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap_or(0);
        if count == 0 || before <= count as u64 {
            let _ = server.shutdown(Shutdown::Both);
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&buffer[..count])?;
    }
}
