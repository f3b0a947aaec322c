//! As whom a container runs: the Pod's word before the image's, names looked up in the image's own `/etc/passwd` and `/etc/group`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cox_cri::v1::{
    ContainerUser, LinuxContainerSecurityContext, LinuxContainerUser, SupplementalGroupsPolicy,
};
use serde::{Deserialize, Serialize};

use crate::oci::client::OciError;
use crate::oci::images::OciImage;

/// The account files of an image.
#[derive(Clone, Debug, Default)]
pub(in crate::oci) struct Accounts {
    pub(in crate::oci) passwd: String,
    pub(in crate::oci) group: String,
}

/// User and groups of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups, the first one among them, as the kernel has them.
    pub(crate) groups: Vec<u32>,
    /// From `/etc/passwd`.
    pub(crate) home: Option<PathBuf>,
}

impl Identity {
    pub(crate) fn to_cri(&self) -> ContainerUser {
        ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: self.uid.into(),
                gid: self.gid.into(),
                supplemental_groups: self.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }
    }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Accounts {
    fn users(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let (_, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
            let (_, home) = (fields.next(), fields.next().unwrap_or_default());
            Some(Account {
                name,
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home,
            })
        })
    }

    /// Name, number and members.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }
}

/// What the Pod asks for, or else the image: `user[:group]`, each a number or a name.
fn wanted(
    security: &LinuxContainerSecurityContext,
    image: &OciImage,
) -> Result<(String, Option<String>), OciError> {
    let group = security.run_as_group.map(|group| group.value.to_string());
    let user = match &security.run_as_user {
        Some(user) => user.value.to_string(),
        None => security.run_as_username.clone(),
    };
    if !user.is_empty() {
        return Ok((user, group));
    }
    if group.is_some() {
        return Err(OciError::Refused(
            "runAsGroup is set without runAsUser".into(),
        ));
    }
    let of_image = image.config.user.clone().unwrap_or_default();
    Ok(match of_image.split_once(':') {
        Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
        None => (of_image, None),
    })
}

/// Decides user and groups.
pub(super) fn identity(
    security: &LinuxContainerSecurityContext,
    image: &OciImage,
    accounts: &Accounts,
) -> Result<Identity, OciError> {
    let (user, group) = wanted(security, image)?;
    let user = if user.is_empty() { "0" } else { &user };
    let number: Option<u32> = user.parse().ok();
    let account = accounts
        .users()
        .find(|account| account.name == user || Some(account.uid) == number);
    let uid = account
        .as_ref()
        .map(|account| account.uid)
        .or(number)
        .ok_or_else(|| {
            OciError::Refused(format!("user {user:?} is not in the image's /etc/passwd"))
        })?;
    let gid = match group.filter(|group| !group.is_empty()) {
        Some(group) => {
            let number: Option<u32> = group.parse().ok();
            let found = accounts.groups().find(|(name, _, _)| *name == group);
            found.map(|(_, gid, _)| gid).or(number).ok_or_else(|| {
                OciError::Refused(format!("group {group:?} is not in the image's /etc/group"))
            })?
        }
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = BTreeSet::from([gid]);
    for group in &security.supplemental_groups {
        groups.insert(u32::try_from(*group).map_err(|_| {
            OciError::Refused(format!("supplemental group {group} is out of range"))
        })?);
    }
    if security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge
        && let Some(account) = &account
    {
        let member = |members: &str| {
            members
                .split(',')
                .any(|member| member.trim() == account.name)
        };
        groups.extend(
            accounts
                .groups()
                .filter(|(_, _, members)| member(members))
                .map(|(_, gid, _)| gid),
        );
    }
    let home = account.map_or("", |account| account.home);
    Ok(Identity {
        uid,
        gid,
        groups: groups.into_iter().collect(),
        home: (!home.is_empty()).then(|| home.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::images::RunConfig;
    use cox_cri::v1::Int64Value;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\nbroken\n"
                .into(),
            group: "root:x:0:\nwww:x:33:\nextra:x:50:www,other\nmore:x:60:other, www\n".into(),
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn users_and_groups() {
        let none = LinuxContainerSecurityContext::default;
        let as_user = |uid| LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: uid }),
            ..none()
        };
        let cases = [
            ("nothing said: root", "", none(), Ok((0, 0, vec![0]))),
            (
                "the image's user by name, with its groups",
                "www",
                none(),
                Ok((33, 33, vec![33, 50, 60])),
            ),
            (
                "the image's user and group",
                "www:extra",
                none(),
                Ok((33, 50, vec![50, 60])),
            ),
            (
                "numbers that nobody has",
                "1000:2000",
                none(),
                Ok((1000, 2000, vec![2000])),
            ),
            (
                "the Pod's user goes before the image's",
                "www",
                as_user(7),
                Ok((7, 0, vec![0])),
            ),
            (
                "a number that has an account",
                "",
                as_user(33),
                Ok((33, 33, vec![33, 50, 60])),
            ),
            (
                "the Pod's user by name",
                "",
                LinuxContainerSecurityContext {
                    run_as_username: "www".into(),
                    ..none()
                },
                Ok((33, 33, vec![33, 50, 60])),
            ),
            (
                "groups of the Pod come on top",
                "",
                LinuxContainerSecurityContext {
                    supplemental_groups: vec![1234],
                    ..as_user(33)
                },
                Ok((33, 33, vec![33, 50, 60, 1234])),
            ),
            (
                "strictly the groups of the Pod",
                "",
                LinuxContainerSecurityContext {
                    supplemental_groups: vec![1234],
                    supplemental_groups_policy: SupplementalGroupsPolicy::Strict.into(),
                    ..as_user(33)
                },
                Ok((33, 33, vec![33, 1234])),
            ),
            (
                "a group of its own",
                "",
                LinuxContainerSecurityContext {
                    run_as_group: Some(Int64Value { value: 5 }),
                    ..as_user(33)
                },
                Ok((33, 5, vec![5, 50, 60])),
            ),
            (
                "a group alone",
                "",
                LinuxContainerSecurityContext {
                    run_as_group: Some(Int64Value { value: 5 }),
                    ..none()
                },
                Err("runAsGroup"),
            ),
            ("an unknown name", "nobody", none(), Err("\"nobody\"")),
            ("an unknown group", "0:nogroup", none(), Err("\"nogroup\"")),
        ];
        for (case, user, security, expected) in cases {
            let image = OciImage {
                config: RunConfig {
                    user: Some(user.into()),
                    ..RunConfig::default()
                },
                ..OciImage::default()
            };
            match (identity(&security, &image, &accounts()), expected) {
                (Ok(found), Ok((uid, gid, groups))) => {
                    assert_eq!(
                        (found.uid, found.gid, found.groups),
                        (uid, gid, groups),
                        "case: {case}"
                    );
                }
                (Err(err), Err(text)) => {
                    assert!(err.to_string().contains(text), "case: {case}: {err}")
                }
                (found, expected) => panic!("case: {case}: {found:?}, not {expected:?}"),
            }
        }
    }
}
