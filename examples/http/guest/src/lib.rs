//! A wasi:http service: answers every request with who and where it is.

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Service;

impl wasip2::exports::http::incoming_handler::Guest for Service {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_else(|| "/".into());
        let host = wasip2::cli::environment::get_environment()
            .into_iter()
            .find_map(|(name, value)| (name == "HOSTNAME").then_some(value))
            .unwrap_or_else(|| "a Pod".into());
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(response_out, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        let text = format!("Hello from {host}, you asked for {path}\n");
        for chunk in text.as_bytes().chunks(4096) {
            if stream.blocking_write_and_flush(chunk).is_err() {
                return;
            }
        }
        drop(stream);
        // The client may have gone: there is nobody left to tell.
        OutgoingBody::finish(body, None).ok();
    }
}

wasip2::http::proxy::export!(Service);
