// expertmesh-coordinator: serve a model, describe one, or use its tokenizer or chat template. Exit codes: 0 done; 1
// failed while running; 2 a bad command line or model directory, or no such device.
#include <iostream>

#include "common/base/error.h"
#include "common/base/log.h"
#include "common/transport/mpi_runtime.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/model/model_plan.h"
#include "coordinator/options.h"
#include "coordinator/restart.h"
#include "coordinator/server.h"

namespace expertmesh {
namespace {

int fail(int code, char const* what) {
  std::cerr << "expertmesh: " << what << std::endl;
  return code;
}

// Runs a command; what it throws becomes one line and an exit code.
template <class Command>
int run(Command const& command) {
  init_log("coordinator");
  try {
    return command();
  } catch (ModelError const& error) {
    return fail(2, error.what());
  } catch (FileError const& error) {
    return fail(2, error.what());
  } catch (DeviceError const& error) {
    return fail(2, error.what());
  } catch (std::exception const& error) {
    return fail(1, error.what());
  }
}

// A full disk, say, must not pass for an answer.
int if_written(int code) {
  std::cout.flush();
  return std::cout ? code : fail(1, "standard output cannot be written");
}

int run_serve(ServeOptions const& options, Restart& restart) {
  return run([&] { return serve(options, restart); });
}

int run_render(RenderOptions const& options) {
  return run([&] {
    render(options, std::cin, std::cout);
    return if_written(0);
  });
}

int run_info(InfoOptions const& options) {
  InfoReport const report = describe_model(options.model_dir, options.workers,
                                           {.dtype = options.dtype,
                                            .quantization = options.quantization,
                                            .kv_dtype = options.kv_dtype,
                                            .holder = options.device == "cpu" ? Holder::processor : Holder::device});
  std::cout << (options.json ? report.json : report.text);
  return if_written(report.servable ? 0 : 2);
}

int run_tokenize(TokenizeOptions const& options) {
  std::ios::sync_with_stdio(false);
  try {
    tokenize(options, std::cin, std::cout);
    return if_written(0);
  } catch (ModelError const& error) {
    return fail(2, error.what());
  }
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  using namespace expertmesh;
  Restart restart(argc, argv);
  auto const command = parse_command_line(argc, argv);
  if (auto const* exit = std::get_if<ExitNow>(&command)) return exit->code;
  if (auto const* info = std::get_if<InfoOptions>(&command)) return run_info(*info);
  if (auto const* tokenizing = std::get_if<TokenizeOptions>(&command)) return run_tokenize(*tokenizing);
  if (auto const* render = std::get_if<RenderOptions>(&command)) return run_render(*render);
  auto const& options = std::get<ServeOptions>(command);
  int code = run_serve(options, restart);
  if (code == kExitRestart) {
    restart.run();
    code = fail(1, "cannot start anew");
  }
  if (options.clustered()) exit_without_finalize(code);
  return code;
}
