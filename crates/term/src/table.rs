//! Plain tables: columns set apart by two blanks, no frames, so that they can be read on
//! a serial line and cut with awk.

use comfy_table::{CellAlignment, ContentArrangement, Table};

/// A table under way.
#[derive(Debug)]
pub struct Columns(Table);

impl Columns {
    /// A table with these headings; one that starts with `>` is set to the right.
    pub fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
        for (at, heading) in headings.iter().enumerate() {
            if let Some(column) = table.column_mut(at) {
                column.set_padding((0, 2));
                if heading.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self(table)
    }

    /// One more row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(cells.into_iter().map(Into::<String>::into).collect::<Vec<_>>());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.0.row_count() == 0
    }
}

impl std::fmt::Display for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in self.0.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Columns::new(&["NAME", ">SIZE", "NOTE"]);
        assert!(table.is_empty());
        table.row(["a", "9.99 kB", ""]);
        table.row(["longer", "1 B", "x y"]);
        assert_eq!(
            table.to_string(),
            "NAME       SIZE  NOTE\na       9.99 kB\nlonger      1 B  x y\n"
        );
    }
}
