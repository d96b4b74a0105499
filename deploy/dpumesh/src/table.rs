//! Text in columns, as kubectl prints it: no lines, so that it can be searched and cut.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

/// Rows below a header; nothing when there are no rows.
pub fn columns<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    let mut is_empty = true;
    for row in rows {
        table.add_row(row);
        is_empty = false;
    }
    if is_empty {
        return String::new();
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
