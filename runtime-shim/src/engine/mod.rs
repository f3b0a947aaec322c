//! The Wasm engine: turns Wasm into programs that containers run, and runs them within their limits.
//!
//! Owns the two wasmtime engines (same code generation, different allocators), the linkers with all that a guest may import, the
//! guest threads, and the cache of compiled code. Input: a layer digest and a [`GuestContext`]; output: an exit
//! ([`Outcome`]) or a served socket. It never sees CRI, and it never takes machine code from anywhere but its own cache.

pub(crate) mod account;
pub(crate) mod budget;
pub(crate) mod code;
pub(crate) mod command;
pub(crate) mod compile;
pub(crate) mod config_store;
pub(crate) mod executor;
pub(crate) mod guest;
pub(crate) mod http;
mod http03;
pub(crate) mod imports;
mod latency;
pub(crate) mod memory;
pub(crate) mod program;
mod run_queue;
mod stacks;
pub(crate) mod stdio;
pub(crate) mod ticker;
mod weigh;

use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use wasmtime::component::Linker;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use budget::Budget;
use executor::Executor;
use guest::{Guest, ModuleGuest};
use ticker::Ticker;

pub(crate) use guest::{GuestContext, Preopen};
pub(crate) use program::{Program, ProgramKind};

/// The WASI that a program is made for. 0.3 comes with another way of calling into and out of a component, for which code is compiled
/// differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wasi {
    /// 0.2 components and core modules of preview 1.
    V02,
    /// Experimental, behind a switch: wasmtime 48 promises no security fixes for it.
    V03,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By itself, with this code.
    Exited(i32),
    /// The guest's code failed: unreachable, out of bounds, stack overflow.
    Trapped(String),
    /// The container's memory limit was exceeded.
    OutOfMemory(String),
    /// The container was killed.
    Killed,
    /// The host could not start or carry on; not the guest's doing.
    Failed(String),
}

/// Why the engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refused its configuration.
    #[error("cannot set up the Wasm engine: {0:#}")]
    Wasmtime(wasmtime::Error),
    /// Threads could not be started.
    #[error("cannot start the guest threads")]
    Threads(#[source] std::io::Error),
}

/// The engines and what every program shares.
pub(crate) struct WasmEngine {
    /// Instances that live long: memory is taken when needed.
    on_demand: Engine,
    linker: Linker<Guest>,
    module_linker: wasmtime::Linker<ModuleGuest>,
    /// Instances per request: slots are prepared; made when the first wasi:http program is loaded, since it reserves a lot of
    /// address space.
    pooled: OnceLock<Option<(Engine, Linker<Guest>)>>,
    /// For components of WASI 0.3, whose code is made with support for concurrency inside an instance; made when the first one is
    /// loaded.
    concurrent: OnceLock<Result<(Engine, Linker<Guest>), String>>,
    http_instances_max: u32,
    ticker: Ticker,
    executor: Executor,
    budget: Arc<Budget>,
    /// Kept for its threads; dropped in the background since a guest's file operation may still be blocked.
    io: Option<tokio::runtime::Runtime>,
}

/// The part of the configuration that decides what the compiler makes: the same in the compiling child and in both engines.
pub(crate) fn code_config(wasi: Wasi) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // It costs every call into a component a little, and every store memory.
    config.concurrency_support(wasi == Wasi::V03);
    config
}

/// Names the code that this build of the engine can map, as 16 hex digits.
pub(crate) fn compatibility(engine: &Engine) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl WasmEngine {
    /// Starts the engine with `threads` guest threads.
    pub(crate) fn start(threads: usize, http_instances_max: u32) -> Result<Arc<Self>, EngineError> {
        let mut config = code_config(Wasi::V02);
        config.with_host_stack(Arc::new(stacks::Stacks::default()));
        let on_demand = Engine::new(&config).map_err(EngineError::Wasmtime)?;
        let linker =
            imports::component_linker(&on_demand, Wasi::V02).map_err(EngineError::Wasmtime)?;
        let module_linker = imports::module_linker(&on_demand).map_err(EngineError::Wasmtime)?;
        let ticker = Ticker::start().map_err(EngineError::Threads)?;
        ticker.watch(&on_demand);
        let io = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.clamp(1, 4))
            .thread_name("guest-io")
            .on_thread_start(latency::wants_short_slices)
            .max_blocking_threads(64)
            .enable_all()
            .build()
            .map_err(EngineError::Threads)?;
        let executor = Executor::start(threads, io.handle().clone(), ticker.clone())
            .map_err(EngineError::Threads)?;
        Ok(Arc::new(Self {
            on_demand,
            linker,
            module_linker,
            pooled: OnceLock::new(),
            concurrent: OnceLock::new(),
            http_instances_max,
            ticker,
            executor,
            budget: Arc::new(Budget::of_process()),
            io: Some(io),
        }))
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(crate) fn on_demand(&self) -> &Engine {
        &self.on_demand
    }

    pub(crate) fn http_instances_max(&self) -> u32 {
        self.http_instances_max
    }

    /// The engine and what guests may import, for components of WASI 0.3.
    fn concurrent(&self) -> Result<&(Engine, Linker<Guest>), String> {
        let made = self.concurrent.get_or_init(|| {
            let make = || -> wasmtime::Result<(Engine, Linker<Guest>)> {
                let mut config = code_config(Wasi::V03);
                config.with_host_stack(Arc::new(stacks::Stacks::default()));
                let engine = Engine::new(&config)?;
                let linker = imports::component_linker(&engine, Wasi::V03)?;
                Ok((engine, linker))
            };
            let (engine, linker) = make().map_err(|err| format!("{err:#}"))?;
            self.ticker.watch(&engine);
            Ok((engine, linker))
        });
        made.as_ref().map_err(Clone::clone)
    }

    fn pooled(&self) -> Option<&(Engine, Linker<Guest>)> {
        self.pooled
            .get_or_init(|| {
                let made = pooled_engine(self.http_instances_max).and_then(|engine| {
                    let linker = imports::component_linker(&engine, Wasi::V02)?;
                    Ok((engine, linker))
                });
                match made {
                    Ok(pooled) => {
                        self.ticker.watch(&pooled.0);
                        Some(pooled)
                    }
                    Err(err) => {
                        tracing::warn!(
                            error = format!("{err:#}"),
                            "No prepared instance slots, requests take memory on demand"
                        );
                        None
                    }
                }
            })
            .as_ref()
    }
}

impl Drop for WasmEngine {
    fn drop(&mut self) {
        self.executor.close();
        self.ticker.close();
        if let Some(io) = self.io.take() {
            io.shutdown_background();
        }
    }
}

fn pooled_engine(instances: u32) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    // A component made by the usual tools has one memory, two tables and up to four core instances.
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(4))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(2))
        .total_stacks(instances)
        .max_unused_warm_slots(64)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10)
        .pagemap_scan(wasmtime::Enabled::Auto);
    let mut config = code_config(Wasi::V02);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}
