//! etcd's own work: clients of its API that do nothing else. Puts, as its own benchmark sends them, and what a store on it cannot do without:
//! transactions that compare, with a watch that brings all of them back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use tokio::task::JoinSet;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// `Put` of etcd's API.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// An answer of which nobody reads anything.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {}

/// `put if its revision is zero`.
#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, optional, tag = "1")]
    compare: Option<Compare>,
    #[prost(message, optional, tag = "2")]
    success: Option<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Compare {
    /// 2 is the revision.
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(int64, optional, tag = "6")]
    mod_revision: Option<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchResponse {
    #[prost(message, repeated, tag = "11")]
    events: Vec<Answer>,
}

/// What the clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Plain puts.
    Puts,
    /// Transactions that compare, all brought back by a watch.
    Watched,
}

/// Who does it, and how much of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    pub(super) url: &'a str,
    pub(super) clients: usize,
    pub(super) connections: usize,
    pub(super) writes: usize,
    pub(super) len: usize,
    /// Makes keys that no other run has.
    pub(super) folder: &'a str,
}

async fn connect(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .tcp_nodelay(true)
        // As the backend's: a watch that has to wait for its window costs etcd more.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    Ok(endpoint.connect().await?)
}

/// Seconds that all of it took.
pub(super) async fn run(work: Work, plan: Plan<'_>) -> Result<f64> {
    let mut channels = Vec::new();
    for _ in 0..plan.connections {
        channels.push(connect(plan.url).await?);
    }
    let watch = match work {
        Work::Puts => None,
        Work::Watched => Some(watch(channels[0].clone(), plan.writes).await?),
    };
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for client in 0..plan.clients {
        let channel = channels[client % plan.connections].clone();
        let (next, folder) = (Arc::clone(&next), plan.folder.to_owned());
        workers.spawn(async move {
            let mut grpc = tonic::client::Grpc::new(channel);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= plan.writes {
                    return anyhow::Ok(());
                }
                let put = PutRequest {
                    key: format!("/benchmark/{folder}/c-{number}").into_bytes(),
                    value: vec![b'x'; plan.len],
                };
                grpc.ready().await?;
                match work {
                    Work::Puts => send_put(&mut grpc, put).await?,
                    Work::Watched => send_transaction(&mut grpc, put).await?,
                }
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    if let Some(watch) = watch {
        watch.await??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

async fn send_put(grpc: &mut tonic::client::Grpc<Channel>, put: PutRequest) -> Result<()> {
    let codec = ProstCodec::<PutRequest, Answer>::default();
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    grpc.unary(tonic::Request::new(put), path, codec).await?;
    Ok(())
}

async fn send_transaction(grpc: &mut tonic::client::Grpc<Channel>, put: PutRequest) -> Result<()> {
    let compare = Compare {
        target: 2,
        key: put.key.clone(),
        mod_revision: Some(0),
    };
    let transaction = TxnRequest {
        compare: Some(compare),
        success: Some(RequestOp { put: Some(put) }),
    };
    let codec = ProstCodec::<TxnRequest, TxnResponse>::default();
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Txn");
    let request = tonic::Request::new(transaction);
    let answer = grpc.unary(request, path, codec).await?;
    anyhow::ensure!(answer.into_inner().succeeded, "a key is there already");
    Ok(())
}

/// Watches everything until so many events have come.
async fn watch(
    channel: Channel,
    mut missing: usize,
) -> Result<tokio::task::JoinHandle<Result<()>>> {
    let everything = WatchCreateRequest {
        key: vec![0],
        range_end: vec![0],
    };
    let request = WatchRequest {
        create: Some(everything),
    };
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(1 << 30);
    grpc.ready().await?;
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let answer = grpc.streaming(tonic::Request::new(requests), path, codec);
    let mut stream = answer.await?.into_inner();
    // The first message says that the watch is there.
    stream.message().await?;
    Ok(tokio::spawn(async move {
        while missing > 0 {
            let message = stream.message().await?;
            let events = message.map_or(missing, |message| message.events.len());
            missing = missing.saturating_sub(events);
        }
        Ok(())
    }))
}
