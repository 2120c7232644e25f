//! One address: what the outside sees, and the way out.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;

/// A GET of `/`, whole: headers, body.
fn get(port: u16) -> Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting")?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        bail!("no end of headers: {answer:?}")
    };
    let body = answer.split_off(end + 4);
    Ok((String::from_utf8_lossy(&answer).into_owned(), body))
}

/// NET-3: a client outside sees no difference, whichever node runs the process.
pub fn apache(cluster: &Cluster<'_>) -> Result<()> {
    cluster.exec(0, &["apachectl", "start"])?;
    let page = cluster.exec(0, &["cat", "/var/www/html/index.html"])?;
    for _ in 0..5 {
        let (headers, body) = get(cluster.port)?;
        ensure!(headers.starts_with("HTTP/1.1 200 OK"), "{headers}");
        ensure!(headers.contains("Server: Apache"), "{headers}");
        ensure!(
            body == page.as_bytes(),
            "Apache's page came out changed ({} of {} bytes)",
            body.len(),
            page.len()
        );
    }
    cluster.exec(0, &["apachectl", "stop"])?;
    Ok(())
}

pub fn outgoing(cluster: &Cluster<'_>) -> Result<()> {
    for cell in 0..2 {
        cluster.exec(cell, &["ping", "-c", "1", "-W", "10", "10.64.0.1"])?;
    }
    Ok(())
}
