//! Two parts of a shop in one component. With the variable GOODS it is the catalogue: it answers with the lines of that file, a good
//! and its price each. Without it is the page: it asks the catalogue what there is and the stock how much of it is left.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};

struct Shop;

impl wasip2::exports::http::incoming_handler::Guest for Shop {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (status, text) = match (std::env::var("GOODS"), path.as_str()) {
            (Ok(file), _) => match std::fs::read_to_string(&file) {
                Ok(goods) => (200, goods),
                Err(error) => (500, format!("{file}: {error}\n")),
            },
            (Err(_), "/") => page(),
            (Err(_), _) => (404, "The shop has one page.\n".to_owned()),
        };
        answer(response_out, status, &text);
    }
}

/// What there is, and how much of it is left.
fn page() -> (u16, String) {
    let asked = ask("catalogue", "/").and_then(|goods| Ok((goods, ask("stock", "/stock.txt")?)));
    let (goods, stock) = match asked {
        Ok(answers) => answers,
        Err(why) => return (502, format!("{why}\n")),
    };
    let left = |good: &str| {
        let counts = stock.lines().filter_map(|line| line.split_once(' '));
        counts.into_iter().find_map(|(name, count)| (name == good).then_some(count))
    };
    let mut text = "Welcome to the shop.\n".to_owned();
    for (good, price) in goods.lines().filter_map(|line| line.split_once(' ')) {
        let left = left(good).unwrap_or("none");
        text.push_str(&format!("{good}: {price}, {left} left\n"));
    }
    (200, text)
}

/// The body of `GET http://HOST/PATH`.
fn ask(host: &str, path: &str) -> Result<String, String> {
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_scheme(Some(&Scheme::Http))
        .and(request.set_authority(Some(host)))
        .and(request.set_path_with_query(Some(path)));
    set.map_err(|()| format!("{host}{path} is no address"))?;
    let failed = |error: wasip2::http::types::ErrorCode| format!("{host}: {error:?}");
    let coming = outgoing_handler::handle(request, None).map_err(failed)?;
    coming.subscribe().block();
    let response = match coming.get() {
        Some(Ok(Ok(response))) => response,
        Some(Ok(Err(error))) => return Err(failed(error)),
        Some(Err(())) | None => return Err(format!("{host}: the answer is gone")),
    };
    let status = response.status();
    let body = response.consume().map_err(|()| format!("{host}: the body is gone"))?;
    let stream = body.stream().map_err(|()| format!("{host}: the body is gone"))?;
    let mut bytes = Vec::new();
    // The stream ends with an error that says so.
    while let Ok(chunk) = stream.blocking_read(4096) {
        bytes.extend(chunk);
    }
    match status {
        200 => String::from_utf8(bytes).map_err(|_| format!("{host}: the answer is no text")),
        _ => Err(format!("{host} answers {status}")),
    }
}

fn answer(response_out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    let plain = b"text/plain; charset=utf-8".to_vec();
    headers.append("content-type", &plain).expect("a header that may be set");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a status that exists");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(response_out, Ok(response));
    let stream = body.write().expect("the stream is taken once");
    for chunk in text.as_bytes().chunks(4096) {
        if stream.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
    drop(stream);
    // The client may have gone: there is nobody left to tell.
    OutgoingBody::finish(body, None).ok();
}

wasip2::http::proxy::export!(Shop);
