#include "coordinator/observe/trace_json.h"

#include <spdlog/fmt/fmt.h>

#include <iterator>

namespace expertmesh {
namespace {

constexpr std::uint32_t kCoordinator = 1;  // process
constexpr std::uint32_t kEngine = 1;       // its thread
constexpr char const* kPartNames[] = {"queued", "prefill", "decode"};

std::uint32_t process_of(std::uint32_t worker) {
  return kCoordinator + worker;
}

// Nanoseconds as microseconds, exactly.
std::string microseconds(std::int64_t ns) {
  std::uint64_t const size = ns < 0 ? -static_cast<std::uint64_t>(ns) : static_cast<std::uint64_t>(ns);
  return fmt::format("{}{}.{:03}", ns < 0 ? "-" : "", size / 1000, size % 1000);
}

// Text as it stands between quotes.
std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (char const c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f)
      out += '?';  // so that a text that was cut, or is no UTF-8, is still JSON
    else
      out += c;
  }
  return out + '"';
}

template <class... Args>
void line(std::string& out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(out), format, std::forward<Args>(args)...);
  out += ",\n";
}

char const* name_of(StepTraced const& step) {
  if (step.encoder) return "encode step";
  if (step.decodes == step.tokens) return "decode step";
  return step.decodes == 0 ? "prefill step" : "mixed step";
}

char const* name_of(WorkerTraced::Change change) {
  switch (change) {
    case WorkerTraced::Change::serves:
      return "serves";
    case WorkerTraced::Change::left:
      return "left";
    case WorkerTraced::Change::died:
      return "died";
  }
  return "";
}

}  // namespace

std::string TraceJson::begin(std::int64_t unix_ns) {
  std::string out = "[\n";
  line(out, R"({{"ph":"M","pid":{},"name":"process_name","args":{{"name":"coordinator"}}}})", kCoordinator);
  line(out, R"({{"ph":"M","pid":{},"name":"process_sort_index","args":{{"sort_index":0}}}})", kCoordinator);
  line(out, R"({{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":"engine"}}}})", kCoordinator, kEngine);
  line(out, R"({{"ph":"i","pid":{},"tid":{},"ts":0,"s":"p","name":"trace begins","args":{{"unix_time_s":{}.{:09}}}}})",
       kCoordinator, kEngine, unix_ns / 1'000'000'000, unix_ns % 1'000'000'000);
  return out;
}

void TraceJson::add(TraceEvent const& event, std::string& out) {
  std::visit([&](auto const& e) { put(e, out); }, event);
}

std::string TraceJson::end(char const* why, std::int64_t now_ns) const {
  return fmt::format("{{\"ph\":\"i\",\"pid\":{},\"tid\":{},\"ts\":{},\"s\":\"p\",\"name\":\"trace ends: {}\"}}\n]\n",
                     kCoordinator, kEngine, time(now_ns), why);
}

std::string TraceJson::time(std::int64_t ns) const {
  return microseconds(ns - zero_ns_);
}

std::string TraceJson::span(TraceSpan of) const {
  return fmt::format(R"("ts":{},"dur":{})", time(of.begin_ns), microseconds(of.end_ns - of.begin_ns));
}

void TraceJson::put(StepTraced const& e, std::string& out) {
  line(out,
       R"({{"ph":"X","pid":{},"tid":{},{},"cat":"step","name":"{}","args":{{"step":{},"tokens":{},"decodes":{},)"
       R"("sequences":{}{}}}}})",
       kCoordinator, kEngine, span(e.span), name_of(e), e.step, e.tokens, e.decodes, e.sequences,
       e.failed ? R"(,"failed":true)" : "");
}

void TraceJson::put(StageTraced const& e, std::string& out) {
  line(out, R"({{"ph":"X","pid":{},"tid":{},{},"cat":"stage","name":"{}","args":{{"step":{}{}}}}})", kCoordinator,
       kEngine, span(e.span), kStageNames[static_cast<std::size_t>(e.stage)], e.step,
       e.layer ? fmt::format(R"(,"layer":{})", *e.layer) : "");
}

// They may overlap, so they are asynchronous events.
void TraceJson::put(ExchangeTraced const& e, std::string& out) {
  name_worker(e.worker, e.incarnation, out);
  auto const ends = [&](char phase, std::int64_t when_ns, std::string const& args) {
    line(out,
         R"({{"ph":"{}","pid":{},"tid":{},"ts":{},"cat":"exchange","id":"{}.{}","name":"exchange","args":{{{}}}}})",
         phase, process_of(e.worker), e.incarnation, time(when_ns), e.worker, e.attempt, args);
  };
  ends('b', e.span.begin_ns, fmt::format(R"("layer":{},"entries":{})", e.layer, e.entries));
  ends('e', e.span.end_ns, fmt::format(R"("answered":{})", e.answered));
}

void TraceJson::put(ComputeTraced const& e, std::string& out) {
  name_worker(e.worker, e.incarnation, out);
  line(out,
       R"({{"ph":"X","pid":{},"tid":{},{},"cat":"compute","name":"experts","args":{{"layer":{},"entries":{},)"
       R"("exchange":"{}.{}","offset_us":{},"uncertainty_us":{}}}}})",
       process_of(e.worker), e.incarnation, span(e.span), e.layer, e.entries, e.worker, e.attempt,
       microseconds(e.offset_ns), microseconds(e.uncertainty_ns));
}

void TraceJson::put(RequestTraced const& e, std::string& out) {
  auto const mark = [&](char phase, char const* name, std::string const& args) {
    line(out, R"({{"ph":"{}","pid":{},"tid":{},"ts":{},"cat":"request","id":"{}","name":"{}","args":{{{}}}}})", phase,
         kCoordinator, kEngine, time(e.when_ns), e.sequence, name, args);
  };
  using Part = RequestTraced::Part;
  auto const name_of_part = [](Part part) { return kPartNames[static_cast<std::size_t>(part)]; };
  std::string const id = fmt::format(R"("request_id":{})", quoted(e.request_id.view()));
  if (e.before == Part::over)
    mark('b', "request", fmt::format(R"({},"prompt_tokens":{})", id, e.prompt_tokens));
  else
    mark('e', name_of_part(e.before), "");
  if (e.now == Part::over)
    mark('e', "request", fmt::format(R"({},"finished":{},"answer_tokens":{})", id, e.good, e.answer_tokens));
  else
    mark('b', name_of_part(e.now), "");
}

void TraceJson::put(WorkerTraced const& e, std::string& out) {
  name_worker(e.worker, e.incarnation, out);
  line(out,
       R"({{"ph":"i","pid":{},"tid":{},"ts":{},"s":"g","cat":"worker","name":"worker {} {}","args":{{"worker":{},)"
       R"("incarnation":{},"reason":{}}}}})",
       process_of(e.worker), e.incarnation, time(e.when_ns), e.worker, name_of(e.change), e.worker, e.incarnation,
       quoted(e.reason.view()));
}

void TraceJson::name_worker(std::uint32_t worker, std::uint32_t incarnation, std::string& out) {
  if (named_.insert({worker, 0}).second) {
    line(out, R"({{"ph":"M","pid":{},"name":"process_name","args":{{"name":"worker {}"}}}})", process_of(worker),
         worker);
    line(out, R"({{"ph":"M","pid":{},"name":"process_sort_index","args":{{"sort_index":{}}}}})", process_of(worker),
         worker);
  }
  if (named_.insert({worker, incarnation}).second)
    line(out, R"({{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":"compute, life {}"}}}})",
         process_of(worker), incarnation, incarnation);
}

}  // namespace expertmesh
