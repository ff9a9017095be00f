//! Parts of a page.

use crate::Error;
use crate::bars::{self, Chart};

pub use crate::escape::escape;

/// How it looks.
pub const STYLE: &str = include_str!("style.css");

/// A whole page around `body`, which is HTML.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport \
         content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n",
        escape(title)
    )
}

/// A figure with a caption (HTML), the legend of those colours that the chart has, and the chart.
/// `name` says in a few words what it is.
pub fn chart(
    name: &str,
    caption: &str,
    legend: &[(u8, &str)],
    chart: &Chart,
) -> Result<String, Error> {
    let used = |colour: u8| {
        chart.bars.iter().flat_map(|b| &b.parts).any(|p| p.colour == colour && p.value > 0.0)
    };
    let keys: String = legend
        .iter()
        .filter(|(colour, _)| used(*colour))
        .map(|(colour, name)| key(*colour, name))
        .collect();
    Ok(figure(&format!("{caption}<br>{keys}"), &bars::svg(name, chart)?))
}

/// One entry of a legend.
pub fn key(colour: u8, name: &str) -> String {
    format!(
        "<span class=key><svg width=12 height=12 aria-hidden=true><rect width=12 height=12 \
         class=c{colour} /></svg> {}</span> ",
        escape(name)
    )
}

/// A figure with a caption; both are HTML.
pub fn figure(caption: &str, content: &str) -> String {
    format!("<figure><figcaption>{caption}</figcaption>{content}</figure>")
}

/// A table. Columns after the first are numbers unless `texts`; cells are text.
pub fn table(head: &[&str], rows: &[Vec<String>], texts: bool) -> String {
    let class = |column: usize| if column > 0 && !texts { " class=n" } else { "" };
    let mut out =
        format!("<div class=wide><table{}><thead><tr>", if texts { " class=texts" } else { "" });
    for (column, name) in head.iter().enumerate() {
        out.push_str(&format!("<th scope=col{}>{}", class(column), escape(name)));
    }
    out.push_str("</thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let tag = if column == 0 { "th scope=row" } else { "td" };
            out.push_str(&format!("<{tag}{}>{}", class(column), escape(cell)));
        }
    }
    out.push_str("</tbody></table></div>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_text() {
        assert_eq!(
            escape("<b a='1' c=\"2\">&\u{1b}\0"),
            "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;\u{fffd}\u{fffd}"
        );
        let table = table(&["<i>"], &[vec!["<script>".into(), "</td>".into()]], false);
        assert!(
            !table.contains("<i>") && !table.contains("<script>") && !table.contains("</td>"),
            "{table}"
        );
    }
}
