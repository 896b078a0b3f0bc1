// Any file is tensors that lie inside it, or a ModelError.
#include "common/checkpoint/safetensors.h"
#include "common/base/check.h"
#include "common/base/error.h"
#include "fuzz_folder.h"

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace expertmesh;
  try {
    SafetensorsFile const file(test::fuzz_folder("model.safetensors", data, size) / "model.safetensors");
    for (auto const& [name, entry] : file.entries())
      EM_CHECK(entry.begin <= entry.end && entry.end <= size, name << ": " << entry.begin << " to " << entry.end);
  } catch (ModelError const& error) {
    EM_CHECK(*error.what() != '\0', "an error without a word");
  } catch (FileError const&) {
  }
  return 0;
}
