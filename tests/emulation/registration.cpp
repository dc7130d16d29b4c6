// Puts the emulated kernels into the CPU slot of their ops and takes them out again; the dispatcher then finds the CPU
// kernels that were there before. Called by tests/emulation/__init__.py through ctypes.
#include <c10/util/Exception.h>

#include <memory>
#include <vector>

#include "emulated_registration.h"

namespace tilewright::emulation {
namespace {

std::vector<Registration>& registrations() {
  static std::vector<Registration> all;
  return all;
}

std::vector<std::unique_ptr<torch::Library>>& libraries() {
  static std::vector<std::unique_ptr<torch::Library>> all;
  return all;
}

// The dispatcher warns of kernels that replace others, which is the purpose.
struct Silence : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

Kept::Kept(Registration registration) { registrations().push_back(registration); }

}  // namespace tilewright::emulation

extern "C" void tilewright_emulation_enable() {
  using namespace tilewright::emulation;
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  for (const Registration registration : registrations()) {
    libraries().push_back(std::make_unique<torch::Library>(torch::Library::IMPL, "tilewright",
                                                           c10::DispatchKey::CPU, __FILE__, __LINE__));
    registration(*libraries().back());
  }
}

extern "C" void tilewright_emulation_disable() { tilewright::emulation::libraries().clear(); }
