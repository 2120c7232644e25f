//! Users, read from `/etc/passwd` and `/etc/group` (a static program cannot load NSS modules).

use anyhow::{Context, Result, bail};

/// A user that a program can run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name, or the number where there is no entry.
    pub name: String,
    /// User number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

impl User {
    /// Looks up a name or a number.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn find(wanted: &str) -> Result<Self> {
        let passwd = std::fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
        let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
        Self::find_in(wanted, &passwd, &group)
    }

    fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<Self> {
        let number: Option<u32> = wanted.parse().ok();
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, shell] = fields[..] else { continue };
            let (Ok(uid), Ok(gid)) = (uid.parse::<u32>(), gid.parse::<u32>()) else { continue };
            if name == wanted || number == Some(uid) {
                let groups = groups_of(name, gid, group);
                return Ok(Self {
                    name: name.into(),
                    uid,
                    gid,
                    groups,
                    home: home.into(),
                    shell: shell.into(),
                });
            }
        }
        match number {
            Some(id) => Ok(Self {
                name: wanted.into(),
                uid: id,
                gid: id,
                groups: vec![id],
                home: "/".into(),
                shell: "/bin/sh".into(),
            }),
            None => bail!("there is no user {wanted:?} in /etc/passwd"),
        }
    }
}

fn groups_of(name: &str, primary: u32, group: &str) -> Vec<u32> {
    let mut groups = vec![primary];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [_, _, gid, members] = fields[..]
            && let Ok(gid) = gid.parse()
            && gid != primary
            && members.split(',').any(|member| member == name)
        {
            groups.push(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nbroken line\nwww-data:x:33:33:w:/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:syslog,www-data\nwww-data:x:33:\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let www = User::find_in("www-data", PASSWD, GROUP).unwrap();
        assert_eq!((www.uid, www.gid, www.groups.clone()), (33, 33, vec![33, 4]));
        assert_eq!(User::find_in("33", PASSWD, GROUP).unwrap(), www);
        assert_eq!(User::find_in("4242", PASSWD, GROUP).unwrap().uid, 4242);
        assert!(User::find_in("nobody-here", PASSWD, GROUP).unwrap_err().to_string().contains("nobody-here"));
    }
}
