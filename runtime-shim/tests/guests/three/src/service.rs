use wasip3::http::types::{ErrorCode, Fields, Request, Response};

struct Service;

wasip3::http::service::export!(Service);

impl wasip3::exports::http::handler::Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_else(|| "/".into());
        if path == "/trap" {
            panic!("asked to");
        }
        let (mut body, contents) = wasip3::wit_stream::new();
        let (trailers, no_trailers) = wasip3::wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
        drop(trailers);
        wasip3::spawn(async move {
            body.write_all(format!("hello from 0.3, you asked for {path}\n").into_bytes()).await;
            if path == "/long" {
                for _ in 0..1000 {
                    body.write_all(vec![b'x'; 1000]).await;
                }
            }
        });
        Ok(response)
    }
}
