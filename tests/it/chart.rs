//! The chart (`charts/ringcast`), by both Helms: what they render of each example before judges that are not ours (`rendered`), the
//! configuration that workers get of it (`config`), its pods (`pod`), how they scale (`scale`), RabbitMQ's objects beside what
//! Ringcast itself declares (`topology`), the simulator (`staging`), what is refused and in which words (`refused`), and the package (`package`).

mod config;
mod helm;
mod objects;
mod package;
mod pod;
mod refused;
mod rendered;
mod scale;
mod schema;
mod staging;
mod topology;
