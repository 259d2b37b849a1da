//! A real server: nginx, over TLS, with HTTP/2.

#![allow(clippy::disallowed_methods, reason = "scratch files of a test")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// Who vouches for the server's certificate, in PEM form.
pub const AUTHORITY: &[u8] = include_bytes!("../tls/authority.pem");

const PROGRAM: &str = "/usr/sbin/nginx";

/// A server on a free port, with a certificate for `localhost`; it ends with this.
pub struct Nginx {
    folder: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Nginx {
    /// Serves the files below `root`; `settings` are lines for its `server` block. None
    /// where nginx is not installed.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start(root: &Path, settings: &str) -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("certificate.pem", include_str!("../tls/certificate.pem")),
            ("key.pem", include_str!("../tls/key.pem")),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (here, root) = (folder.path().display(), root.display());
        let text = format!(
            "user root; daemon off; pid {here}/pid; error_log {here}/error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log {here}/access.log; client_body_temp_path {here};\n\
             server {{ listen 127.0.0.1:{port} ssl http2; root {root}; {settings}\n\
             ssl_certificate {here}/certificate.pem; ssl_certificate_key {here}/key.pem; }} }}\n",
        );
        let config = folder.path().join("nginx.conf");
        std::fs::write(&config, text).unwrap();
        let child = Command::new(PROGRAM)
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .arg("-c")
            .arg(&config)
            .spawn()
            .unwrap();
        let nginx = Self { folder, child, port };
        for _ in 0..200 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Some(nginx);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("nginx: {}", nginx.read("error.log"));
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/", self.port)
    }

    /// One of its files, such as `access.log`; empty where there is none.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
