//! What one instance carries: its WASI context made from the container's, its memory share, its network.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::account::Account;
use super::budget::Budget;
use super::config_store::ConfigStore;
use super::executor::{self, Executor};
use super::memory::{Limiter, MemoryAccount};
use super::stdio::Stdio;
use crate::host_paths;
use crate::network::{PodHttp, PodNetwork};

/// The most random bytes a guest gets in one call: it is made on a guest thread, without a pause.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// A folder of the host that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preopen {
    /// Settled: see [`crate::host_paths`].
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
    pub(crate) readonly: bool,
}

/// The container as its instances see it: whatever the Pod spec grants and nothing else.
#[derive(Debug)]
pub(crate) struct GuestContext {
    /// `argv`, the program's name first.
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
    pub(crate) preopens: Vec<Preopen>,
    pub(crate) network: Arc<PodNetwork>,
    pub(crate) config: Arc<ConfigStore>,
    pub(crate) account: Arc<Account>,
    pub(crate) memory: Arc<MemoryAccount>,
    pub(crate) budget: Arc<Budget>,
}

/// Store data of a component.
pub(crate) struct Guest {
    ctx: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    hooks: PodHttp,
    pub(crate) network: Arc<PodNetwork>,
    pub(crate) config: Arc<ConfigStore>,
    limiter: Limiter,
}

/// Store data of a core module (preview 1).
pub(crate) struct ModuleGuest {
    pub(crate) ctx: WasiP1Ctx,
    limiter: Limiter,
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.ctx,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http,
            table: &mut self.table,
            hooks: &mut self.hooks,
        }
    }
}

impl GuestContext {
    fn wasi(&self, args: &[String], stdio: Stdio) -> Result<WasiCtxBuilder, String> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.args(args)
            .envs(&self.env)
            .stdin(stdio.stdin)
            .stdout(stdio.stdout)
            .stderr(stdio.stderr)
            .max_random_size(RANDOM_BYTES_MAX);
        if let Some(cwd) = &self.cwd {
            wasi.initial_cwd(cwd);
        }
        for preopen in &self.preopens {
            let perms = if preopen.readonly {
                FsPerms::ReadOnly
            } else {
                FsPerms::ReadWrite
            };
            let failed = |err: &dyn std::fmt::Display| {
                let (guest, host) = (&preopen.guest, preopen.host.display());
                format!("cannot open mount {guest} ({host}): {err:#}")
            };
            let folder = host_paths::open_folder(&preopen.host).map_err(|err| failed(&err))?;
            wasi.preopened_dir(host_paths::of_kernel(&folder), &preopen.guest, perms)
                .map_err(|err| failed(&err))?;
        }
        self.network.grant(&mut wasi);
        Ok(wasi)
    }

    /// A store for an instance of a component.
    pub(crate) fn store(
        &self,
        engine: &Engine,
        executor: &Executor,
        args: &[String],
        stdio: Stdio,
        kill: CancellationToken,
    ) -> Result<Store<Guest>, String> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(self.budget.handles_max());
        let guest = Guest {
            ctx: self.wasi(args, stdio)?.build(),
            table,
            http: WasiHttpCtx::new(),
            hooks: PodHttp::new(Arc::clone(&self.network)),
            network: Arc::clone(&self.network),
            config: Arc::clone(&self.config),
            limiter: Limiter::new(Arc::clone(&self.memory), Arc::clone(&self.budget)),
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.limiter);
        govern(&mut store, &self.account, executor, kill);
        Ok(store)
    }

    /// A store for an instance of a core module.
    pub(crate) fn module_store(
        &self,
        engine: &Engine,
        executor: &Executor,
        args: &[String],
        stdio: Stdio,
        kill: CancellationToken,
    ) -> Result<Store<ModuleGuest>, String> {
        let mut ctx = self.wasi(args, stdio)?.build_p1();
        let handles = self.budget.handles_max();
        ctx.ctx().table.set_max_capacity(handles);
        let guest = ModuleGuest {
            ctx,
            limiter: Limiter::new(Arc::clone(&self.memory), Arc::clone(&self.budget)),
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.limiter);
        govern(&mut store, &self.account, executor, kill);
        Ok(store)
    }
}

/// Sets what happens at each epoch tick that the guest notices: it ends when killed, gives way when it is over its quota (the
/// executor then parks it) or when others wait, and goes on otherwise.
fn govern<T: 'static>(
    store: &mut Store<T>,
    account: &Arc<Account>,
    executor: &Executor,
    kill: CancellationToken,
) {
    let account = Arc::clone(account);
    let executor = executor.clone();
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |_| {
        if kill.is_cancelled() {
            return Ok(UpdateDeadline::Interrupt);
        }
        executor::charge_turn(&account);
        if account.throttled_until(Instant::now()).is_some() || executor.gives_way() {
            Ok(UpdateDeadline::Yield(1))
        } else {
            Ok(UpdateDeadline::Continue(1))
        }
    });
}
