// expertmesh-bench: measures the engine, what formats cost a model, or a server. Exit codes: 0 done; 1 failed while
// running; 2 a bad command line or model.
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>

#include "common/base/error.h"
#include "common/base/log.h"
#include "common/transport/mpi_runtime.h"
#include "coordinator/bench/engine_report.h"
#include "coordinator/bench/options.h"
#include "coordinator/bench/serve_bench.h"

namespace expertmesh {
namespace {

void write_json(std::optional<std::filesystem::path> const& file, std::string const& text) {
  if (!file) return;
  std::ofstream out(*file);
  out << text << std::flush;
  if (!out) throw FileError("write", errno, std::strerror(errno), file->string());
}

int run(EngineBenchOptions const& options) {
  EngineFigures const figures = run_engine_bench(options);
  std::cout << to_table(options, figures) << std::flush;
  write_json(options.json, to_json(options, figures));
  return 0;
}

int run(QualityBenchOptions const& options) {
  QualityFigures const figures = run_quality_bench(options);
  std::cout << to_table(options, figures) << std::flush;
  write_json(options.json, to_json(options, figures));
  return 0;
}

// Nothing completed is no measurement.
int run(ServeBenchOptions const& options) {
  ServeBenchResult const result = run_serve_bench(options);
  std::cout << to_table(result.figures) << std::flush;
  write_json(options.json, to_json(options, result.model, result.date, result.figures));
  return result.figures.completed > 0 ? 0 : 1;
}

int fail(int code, char const* what) {
  std::cerr << "expertmesh: " << what << std::endl;
  return code;
}

template <class Options>
int run_guarded(Options const& options) {
  init_log("bench");
  try {
    return run(options);
  } catch (ModelError const& error) {
    return fail(2, error.what());
  } catch (std::exception const& error) {
    return fail(1, error.what());
  }
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  using namespace expertmesh;
  auto const command = parse_bench_command_line(argc, argv);
  if (auto const* exit = std::get_if<ExitNow>(&command)) return exit->code;
  if (auto const* serve = std::get_if<ServeBenchOptions>(&command)) return run_guarded(*serve);
  if (auto const* quality = std::get_if<QualityBenchOptions>(&command)) return run_guarded(*quality);
  auto const& engine = std::get<EngineBenchOptions>(command);
  int const code = run_guarded(engine);
  if (engine.runtime.workers > 0) exit_without_finalize(code);
  return code;
}
