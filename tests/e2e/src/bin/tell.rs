//! A server that serves nothing: it writes down what it was started with, and ends.

fn main() -> std::io::Result<()> {
    berth_tests::Started::tell()
}
