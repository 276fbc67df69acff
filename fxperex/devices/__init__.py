"""Device profiles: measured rates of kernels, stored for each device and torch version."""

from fxperex.devices.calibrate import calibrate
from fxperex.devices.heap import hold_heap, keep_pages
from fxperex.devices.profile import Profile
from fxperex.devices.profile_files import cache_folder, device_name, profile, target

__all__ = ["Profile", "cache_folder", "calibrate", "device_name", "hold_heap", "keep_pages",
           "profile", "target"]
